"""A compile that is stopped behind a checkpoint, and goes on: the law that its bytes are those of an unbroken run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.api import CompiledModel, Options
from qcompiler.graph.checkpoints import Checkpoints
from tests import command_models as models


def decoder_and_data(folder: Path) -> tuple[Path, Path]:
    """A model of several segments, and a folder with one sequence for it."""
    data = folder / "data"
    data.mkdir()
    np.savez(data / "0.npz", input_ids=np.arange(24, dtype=np.int64)[None])
    return models.deep_decoder(folder), data


def assert_goes_on_with_the_same_bytes(
    compile_to: Callable[[str, Options], CompiledModel], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops behind the checkpoint number ``at``.

    Args:
        compile_to: compiles into the folder of that name.
    """
    add, count = Checkpoints.add, 0

    def stopping(self: Checkpoints, part: str, content: Any) -> None:
        nonlocal count
        add(self, part, content)
        count += 1
        if count == at:
            raise KeyboardInterrupt

    whole = compile_to("whole", Options()).folder
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checkpoints, "add", stopping)
        compile_to("out", Options())
    again = compile_to("out", Options(resume=True)).folder
    files = [name for name in ("model.onnx", "model.onnx.data") if (whole / name).exists()]
    assert files
    for name in files:
        assert (again / name).read_bytes() == (whole / name).read_bytes()
