"""The built packages: what is in them, and that an application needs only numpy and onnxruntime besides."""

import subprocess
import tarfile
import textwrap
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import onnx
import pytest
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(command: Sequence[str | Path], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare environment, with the source archive, the wheel made from it, and the checkout's wheel."""
    folder = tmp_path_factory.mktemp("built")
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "install", "build"], folder)
    run([folder / "bin" / "python", "-m", "build", "--outdir", folder / "dist", ROOT], folder)
    run([*pip, "uninstall", "--yes", "build"], folder)
    run([*pip, "wheel", "--no-deps", "--wheel-dir", folder / "checkout", ROOT], folder)
    return folder


def the_file(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_source_archive_holds_passes_once(built: Path) -> None:
    with tarfile.open(the_file(built / "dist", "*.tar.gz")) as source:
        names = [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in source.getnames()]
    assert PurePosixPath("passes/__init__.py") in names
    assert PurePosixPath("runtime_ops/CMakeLists.txt") in names
    assert not [name for name in names if name.is_relative_to("qcompiler/passes")]


@pytest.mark.parametrize("source", ["dist", "checkout"])  # an archive has no link at qcompiler/passes
def test_wheel_is_whole(built: Path, source: str) -> None:
    wheel = the_file(built / source, "*.whl")
    assert wheel.name.startswith("qcompiler-")
    assert "-py3-none-" in wheel.name
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    checkout = (path for path in (ROOT / "qcompiler").rglob("*") if path.suffix in {".py", ".yaml", ".typed"})
    expected = {path.relative_to(ROOT).as_posix() for path in checkout}
    expected |= {f"qcompiler/passes/{path.name}" for path in (ROOT / "passes").glob("*.py")}
    assert expected - set(names) == set()
    assert "qcompiler/lib/libqcompiler_ops.so" in names
    installed = {name.split("/")[0] for name in names}
    assert installed == {"qcompiler", "-".join(wheel.name.split("-")[:2]) + ".dist-info"}


def test_application_needs_only_numpy_and_onnxruntime(built: Path) -> None:
    python = built / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    run([*pip, "--constraint", ROOT / "constraints.txt", "numpy", "onnxruntime"], built)
    run([*pip, "--no-deps", the_file(built / "dist", "*.whl")], built)
    value_info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])], "g", value_info[:1], value_info[1:]
    )
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), built / "model.onnx")

    application = """
        import sys
        import numpy as np
        import qcompiler

        session = qcompiler.create_session("model.onnx")
        print(session.run(None, {"x": np.array([1, 2], dtype=np.float32)})[0].tolist())
        print(qcompiler.library_path().is_file())
        for absent in ("onnx", "onnx_ir", "torch", "click"):
            try:
                __import__(absent)
            except ModuleNotFoundError:
                continue
            sys.exit(f"{absent} is installed: this environment is not bare")
    """
    assert run([python, "-c", textwrap.dedent(application)], built).split("\n")[:2] == ["[2.0, 4.0]", "True"]
