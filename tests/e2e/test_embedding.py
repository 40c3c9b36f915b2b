"""examples/embed.c, an application in C: compiled with its sanitizers, run on a compiled model, and where that fails."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from models import tiny_lm
from models.cache import UnavailableError
from qcompiler.api import CompiledModel
from qcompiler.api import compile as compile_model
from qcompiler.runtime import create_session, library_path

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "embed.c"
DEBIAN = "/usr/include/onnxruntime"  # of its package libonnxruntime-dev
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-fsanitize=address,undefined"]

Embed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Embed:
    """The example, linked to the ONNX Runtime of these tests."""
    folder = tmp_path_factory.mktemp("embed")
    header = subprocess.run(
        ["cc", f"-I{DEBIAN}", "-include", "onnxruntime_c_api.h", "-E", "-x", "c", "/dev/null"],
        capture_output=True,
        text=True,
    )
    if header.returncode != 0:
        pytest.skip(
            "no onnxruntime_c_api.h: install libonnxruntime-dev, or name the include folder of ONNX Runtime in CPATH"
        )
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    (folder / "libonnxruntime.so.1").symlink_to(library)  # its soname
    (folder / "libonnxruntime.so").symlink_to(library)
    link = [f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}"]
    program = folder / "embed"
    subprocess.run(["cc", *STRICT, f"-I{DEBIAN}", EXAMPLE, *link, "-o", program], check=True)
    return lambda *arguments: subprocess.run([program, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledModel:
    """A model that needs our library."""
    try:
        built = tiny_lm.build()
    except UnavailableError as error:
        pytest.skip(str(error))
    output = tmp_path_factory.mktemp("compiled") / "out"
    return compile_model(built.path, "w4a16-rtn", target="qcompiler", function_body=False, output=output)


def test_it_prints_what_a_session_in_python_finds(embed: Embed, compiled: CompiledModel) -> None:
    tokens = list(b"The value of")
    done = embed(library_path(), compiled.path, *map(str, tokens))
    assert (done.returncode, done.stderr) == (0, "")  # no leak either
    ids = np.array([tokens])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    last = create_session(compiled.path).run(["logits"], feeds)[0][0, -1]
    best, logit = done.stdout.split()
    assert int(best) == last.argmax() and float(logit) == pytest.approx(last.max(), rel=1e-5)  # six digits


def test_a_library_that_is_not_there_is_said(embed: Embed, compiled: CompiledModel, tmp_path: Path) -> None:
    done = embed(tmp_path / "absent.so", compiled.path, "1")
    assert done.returncode == 1 and "absent.so: cannot open shared object file" in done.stderr
    assert "Sanitizer" not in done.stderr


def test_a_model_that_is_not_there_is_said(embed: Embed, tmp_path: Path) -> None:
    done = embed(library_path(), tmp_path / "absent.onnx", "1")
    assert done.returncode == 1 and "absent.onnx" in done.stderr
    assert "Sanitizer" not in done.stderr
