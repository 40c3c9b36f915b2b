"""Our library in old and new ONNX Runtimes, each in an environment of its own: the C interface is declared by hand."""

import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from qcompiler.graph.own_matmul_nbits import LEVEL
from qcompiler.runtime import library_path
from tests.compiled_models import Compile, normal
from tests.nbits_product import Array, Product, activations, assert_close, assert_near, branches
from tests.small_models import make_model, weight
from tests.sparse_product import SparseProduct

pytestmark = pytest.mark.full

CHILD = Path(__file__).with_name("run_models.py")


@dataclass(frozen=True)
class Version:
    """An ONNX Runtime, and what it can."""

    requirements: tuple[str, ...]  # of pip; empty: the one that these tests run in
    opset: int  # the newest it knows, up to 21
    stock_bits: tuple[int, ...]  # of its own MatMulNBits, in opset 21
    infers_shapes: (
        bool  # without a crash where an optional input is left out before one that is there: from 1.24 on
    )
    outer_constants: bool  # a kernel in a branch finds the weights of the graph around it: from 1.29 on

    def __str__(self) -> str:
        return self.requirements[0].removeprefix("onnxruntime==") if self.requirements else "newest"


VERSIONS = [
    Version(
        ("onnxruntime==1.17.3", "numpy<2"), 20, (), False, False
    ),  # the library's oldest; built against NumPy 1
    Version(("onnxruntime==1.20.1",), 21, (4,), False, False),
    Version(("onnxruntime==1.25.1",), 21, (2, 4, 8), True, False),
    Version((), 21, (2, 4, 8), True, True),
]


@dataclass(frozen=True)
class Result:
    """What became of one model: its outputs, or ONNX Runtime's error."""

    outputs: dict[str, Array]
    shapes: dict[str, list[str | int]]
    error: str


@dataclass(frozen=True)
class Runtime:
    """A Python with one version of ONNX Runtime."""

    version: Version
    python: str

    def run(
        self, folder: Path, model: onnx.ModelProto | Path, feeds: dict[str, Array], *, ours: bool = True
    ) -> Result:
        """Runs the model in a process of that Python, with our library or without."""
        path = model if isinstance(model, Path) else folder / "model.onnx"
        if not isinstance(model, Path):
            onnx.save(model, path)
        np.savez(path.with_suffix(".npz"), **feeds)
        command = [self.python, CHILD, path.parent, *([library_path()] if ours else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"status {done.returncode}: {done.stdout}{done.stderr}"
        if self.version.requirements:
            assert done.stdout.split() == [str(self.version)]
        error = path.with_suffix(".txt")
        if error.exists():
            return Result({}, {}, error.read_text())
        with np.load(path.with_suffix(".outputs.npz")) as outputs:
            return Result(dict(outputs), json.loads(path.with_suffix(".json").read_text()), "")

    def y(self, folder: Path, model: onnx.ModelProto, feeds: dict[str, Array], *, ours: bool = True) -> Array:
        """Its output y, where it must run."""
        result = self.run(folder, model, feeds, ours=ours)
        assert not result.error
        return result.outputs["y"]


@pytest.fixture(scope="module", params=VERSIONS, ids=str)
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    version: Version = request.param
    if not version.requirements:
        return Runtime(version, sys.executable)
    folder = tmp_path_factory.mktemp(f"onnxruntime-{version}")
    venv.create(folder)
    python = str(folder / "bin" / "python")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        python,
        "install",
        "--quiet",
    ]
    done = subprocess.run(
        [*pip, "--only-binary=:all:", *version.requirements], capture_output=True, text=True
    )
    if done.returncode != 0:
        said = done.stderr.strip() or "no message"
        pytest.skip(f"pip cannot install {version.requirements[0]} here: {said.splitlines()[-1]}")
    return Runtime(version, python)


PRODUCTS = {
    "2 bits": Product(bits=2),
    "4 bits": Product(),
    "8 bits": Product(bits=8),
    "no zero points": Product(symmetric=True),
    "bias": Product(biased=True),
    "bias, no zero points": Product(symmetric=True, biased=True),
    "float16 scales": Product(scale_type=np.float16),
    "float32 activations": Product(biased=True, attributes={LEVEL: 1}),
    "all threads": Product(2000, 1200, block_size=64),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_numbers_with_our_library(runtime: Runtime, tmp_path: Path, name: str) -> None:
    product = PRODUCTS[name]
    x = activations(2, 15, product.k)
    model = product.model(opset=runtime.version.opset)
    assert_close(product, runtime.y(tmp_path, model, {"x": x}), x)


@pytest.mark.parametrize("name", PRODUCTS)
def test_mapped_weights(runtime: Runtime, tmp_path: Path, name: str) -> None:
    product = PRODUCTS[name]
    x = activations(2, 15, product.k)
    model = product.laid_out().model(opset=runtime.version.opset)
    assert_close(product, runtime.y(tmp_path, model, {"x": x}), x)


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name != "float16 scales"])  # of float32 alone
def test_numbers_without_our_library(runtime: Runtime, tmp_path: Path, name: str) -> None:
    product, version = PRODUCTS[name], runtime.version
    if product.bits not in version.stock_bits:
        pytest.skip(f"onnxruntime {version} has no MatMulNBits of {product.bits} bits in opset 21")
    x = activations(2, 15, product.k)
    found = runtime.y(tmp_path, product.model(), {"x": x}, ours=False)
    assert_near(product, found, product.expected(x), x)


@pytest.mark.parametrize("x_type", [np.float32, np.float16])
@pytest.mark.parametrize("ours", [True, False], ids=["with", "without"])
def test_outliers(runtime: Runtime, tmp_path: Path, ours: bool, x_type: type) -> None:
    if not ours and runtime.version.opset < 21:
        pytest.skip(f"onnxruntime {runtime.version} does not know opset 21, which bodies have")
    product = SparseProduct(x_type=x_type)
    x = activations(2, 15, product.k).astype(x_type)
    model = product.model(opset=runtime.version.opset)
    product.assert_close(runtime.y(tmp_path, model, {"x": x}, ours=ours), x)


@pytest.mark.parametrize("ours", [True, False], ids=["with", "without"])
@pytest.mark.parametrize("first", [True, False])
def test_branches_read_a_weight_of_the_outer_graph(
    runtime: Runtime, tmp_path: Path, first: bool, ours: bool
) -> None:
    version = runtime.version
    # Before 1.29 ONNX Runtime's own MatMulNBits reads zero points of the outer graph wrongly: off by a quarter of the output's norm.
    product = Product(40, 600, symmetric=not version.outer_constants)
    x = activations(5, 600)
    feeds = {"x": x, "first": np.array(first)}
    if not ours and version.opset < 21:
        pytest.skip(f"onnxruntime {version} does not know opset 21, which bodies have")
    result = runtime.run(tmp_path, branches(product, version.opset), feeds, ours=ours)
    if ours and not version.outer_constants:
        assert "codes is not constant" in result.error and "1.29" in result.error
        return
    assert not result.error
    rows = x if first else -x
    if ours:
        assert_close(product, result.outputs["y"], rows)
    else:
        assert_near(product, result.outputs["y"], product.expected(rows), rows)


def test_the_shape_of_the_output_is_inferred(runtime: Runtime, tmp_path: Path) -> None:
    if not runtime.version.infers_shapes:
        pytest.skip(f"onnxruntime {runtime.version} is not asked to infer the shapes of our operators")
    model = Product().model(opset=runtime.version.opset)
    assert runtime.run(tmp_path, model, {"x": activations(2, 3, 100)}).shapes == {"y": ["B", "M", 40]}


def test_a_bad_attribute_is_an_error_that_names_it(runtime: Runtime, tmp_path: Path) -> None:
    model = Product(attributes={"block_size": 24}).model(opset=runtime.version.opset)
    assert "block_size is 24" in runtime.run(tmp_path, model, {"x": activations(2, 3, 100)}).error


def test_a_bad_input_is_an_error_that_names_it(runtime: Runtime, tmp_path: Path) -> None:
    model = Product().model([None, None, None], opset=runtime.version.opset)
    result = runtime.run(tmp_path, model, {"x": activations(2, 3, 99)})
    assert "the last dimension of x is not K = 100" in result.error


@pytest.mark.parametrize("ours", [True, False], ids=["with", "without"])
def test_a_compiled_model(runtime: Runtime, quantize: Compile, ours: bool) -> None:
    if runtime.version.opset < 21:
        pytest.skip(f"onnxruntime {runtime.version} does not know opset 21, which compiled models have")
    model = make_model(  # two products on one x, which become one node that leaves out optional inputs
        "g (float[M,64] x) => (float[M,32] y) { a = MatMul(x, wa) b = MatMul(x, wb) h = Add(a, b) r = Relu(h) y = MatMul(r, w) }",
        {"wa": weight(64, 96), "wb": weight(64, 96, seed=1), "w": weight(96, 32, seed=2)},
    )
    compiled = quantize(model, "w4a16-rtn", target="qcompiler", settings=["head.bits=4"])
    assert set(compiled.report.running) == {"ai.qcompiler::MatMulNBits", "ai.qcompiler::MatMulNBitsPair"}
    feeds = {"x": normal(5, 64)}
    here = onnxruntime.InferenceSession(compiled.path, providers=["CPUExecutionProvider"]).run(None, feeds)
    result = runtime.run(compiled.path.parent, compiled.path, feeds, ours=ours)
    assert not result.error
    # Both round activations to 8 bits, each its own way at worst.
    difference = np.linalg.norm(result.outputs["y"] - here[0])
    assert difference < 0.02 * np.linalg.norm(here[0])
