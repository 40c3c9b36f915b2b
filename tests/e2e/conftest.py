"""What the tests of whole compiles share."""

from pathlib import Path
from typing import Any

import onnx
import pytest

from qcompiler.api import CompiledModel, Options, compile
from tests.compiled_models import Compile
from tests.small_models import save_model


@pytest.fixture
def quantize(tmp_path: Path) -> Compile:
    """Compiles into a fresh folder, round to nearest at 8 bits unless told otherwise, every pass verified."""

    def run_it(model: onnx.ModelProto | Path, recipe: Any = "w8a16-rtn", **options: Any) -> CompiledModel:
        path = model if isinstance(model, Path) else save_model(model, tmp_path)
        options.setdefault("options", Options(verify_each=True))
        options.setdefault("output", tmp_path / f"out{len(list(tmp_path.iterdir()))}")
        return compile(path, recipe, **options)

    return run_it
