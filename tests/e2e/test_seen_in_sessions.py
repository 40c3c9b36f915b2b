"""What inspect and check tell of real compiled models is what ONNX Runtime does with them."""

from pathlib import Path

import onnx
import pytest

from models import tiny_lm
from qcompiler import compile
from qcompiler.graph.quantized import SCHEME_KEY, SQNR_KEY
from qcompiler.report.check_model import check
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.inspect_model import inspect
from qcompiler.report.inspect_session import inspect_session

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("recipe", "target", "kernels"),
    [
        ("w4a16-rtn", "ort", ("MatMulNBits (level 4)",)),
        ("w4a16-rtn", "qcompiler", ("MatMulNBits",)),
        ("w8a8-dynamic", "ort", ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")),
    ],
)
def test_tiny_lm(tmp_path: Path, recipe: str, target: str, kernels: tuple[str, ...]) -> None:
    made = compile(tiny_lm.build().path, recipe, output=tmp_path / "out", target=target)
    found = inspect_session(inspect(made.path))
    assert len({product.block for product in found.products} - {""}) == 4
    quantized = [product for product in found.products if product.granularity is not None]
    assert len(quantized) == 29 and all(product.sqnr_db is not None for product in quantized)
    for product in quantized:
        assert product.running is not None and not product.running.island
        if product.role == "linear":
            assert (
                all(name.startswith(kernels) for name in product.running.kernels) and product.running.kernels
            )
    assert all(0 < product.running.share < 1 for product in quantized if product.running is not None)
    checked = check(made.path, EvaluationData())
    assert checked.holds and not any(variant.error for variant in checked.variants)
    noted = [
        node for node in onnx.load(made.path).graph.node if SCHEME_KEY in {n.key for n in node.metadata_props}
    ]
    assert all(SQNR_KEY in {note.key for note in node.metadata_props} for node in noted)
    assert sum("MatMul" in node.op_type for node in noted) >= 4
