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
    """A folder with a bare environment (bin/python), and the source archive and wheel built in it."""
    folder = tmp_path_factory.mktemp("built")
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "install", "build"], folder)
    run([folder / "bin" / "python", "-m", "build", "--outdir", folder / "dist", ROOT], folder)
    run([*pip, "uninstall", "--yes", "build"], folder)
    return folder


def archive(built: Path, pattern: str) -> Path:
    (found,) = (built / "dist").glob(pattern)
    return found


def test_source_archive_holds_passes_once(built: Path) -> None:
    with tarfile.open(archive(built, "*.tar.gz")) as source:
        names = [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in source.getnames()]
    assert PurePosixPath("passes/__init__.py") in names
    assert PurePosixPath("runtime_ops/CMakeLists.txt") in names
    assert not [name for name in names if name.is_relative_to("qcompiler/passes")]


def test_wheel_from_the_source_archive_is_whole(built: Path) -> None:
    wheel = archive(built, "*.whl")  # python -m build makes it from the archive, where the link is not
    assert wheel.name.startswith("qcompiler-") and "-py3-none-" in wheel.name
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    checkout = (path for path in (ROOT / "qcompiler").rglob("*") if path.suffix in {".py", ".yaml", ".typed"})
    passes = (path for path in (ROOT / "passes").rglob("*.py"))
    expected = {path.relative_to(ROOT).as_posix() for path in checkout}
    expected |= {f"qcompiler/{path.relative_to(ROOT).as_posix()}" for path in passes}
    assert expected - set(names) == set()
    assert "qcompiler/lib/libqcompiler_ops.so" in names
    assert {name.split("/")[0] for name in names} == {
        "qcompiler",
        f"{'-'.join(wheel.name.split('-')[:2])}.dist-info",
    }


def test_application_needs_only_numpy_and_onnxruntime(built: Path) -> None:
    python = built / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    run([*pip, "--constraint", ROOT / "constraints.txt", "numpy", "onnxruntime"], built)
    run([*pip, "--no-deps", archive(built, "*.whl")], built)
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
        for absent in ("onnx", "onnx_ir", "torch", "networkx", "click"):
            try:
                __import__(absent)
            except ModuleNotFoundError:
                continue
            sys.exit(f"{absent} is installed: this environment is not bare")
    """
    assert run([python, "-c", textwrap.dedent(application)], built).split("\n")[:2] == ["[2.0, 4.0]", "True"]
