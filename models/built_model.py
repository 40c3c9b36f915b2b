"""What every model of this folder is built into, and the choices that decoders share.

Each model file has the same four functions:

    build(...) -> BuiltModel           the ONNX, from the cache or built into it
    calibration_data() -> Path         a file for ``--calib``
    evaluation_data() -> Path          a file for ``--text`` or ``--data``; no part of the calibration data
    measure(model, ...) -> dict        the model's metric on the evaluation data, run by ONNX Runtime
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NoReturn

from qcompiler.errors import QCompilerError, ResourceError


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A finished model in the cache; never write to it."""

    path: Path  # model.onnx; the weights lie beside it
    tokenizer: Path | None = None  # tokenizer.json


class Graph(str, Enum):
    """Which graph of a decoder."""

    PREFILL = "prefill"  # input_ids, attention_mask -> logits
    KV = "kv"  # also position_ids and past_key_values.* -> present.*


class Dtype(str, Enum):
    """Element type of weights and activations; the value is torch's name."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of every model's command line."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--measure", action="store_true", help="also evaluate the model, in ONNX Runtime")
    options.add_argument(
        "--copy-to", type=Path, metavar="DIR", help="copy model, tokenizer and data there, under short names"
    )
    return options


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model with the data to compile and evaluate it."""

    model: BuiltModel
    calibration: Path
    evaluation: Path

    def copy_to(self, folder: Path) -> "ModelFiles":
        """The same in a folder: model.onnx, tokenizer.json, and text.txt and other.txt, or .npz and folders under their names.

        Raises:
            ResourceError: a file of that name is there.
        """
        texts = {"calibration.txt": "text.txt", "evaluation.txt": "other.txt"}
        sources = [*self.model.path.parent.iterdir(), self.calibration, self.evaluation]
        places = {source: folder / texts.get(source.name, source.name) for source in sources}
        taken = [place for place in places.values() if place.exists()]
        if taken:
            raise ResourceError(f"{taken[0]}: exists; give --copy-to another folder")
        folder.mkdir(parents=True, exist_ok=True)
        for source, place in places.items():
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, place)
        tokenizer = self.model.tokenizer
        copied = BuiltModel(places[self.model.path], None if tokenizer is None else places[tokenizer])
        return ModelFiles(copied, places[self.calibration], places[self.evaluation])


def print_built(
    files: ModelFiles, measured: dict[str, float] | None, copy_to: Path | None, recipe: str = "w4a16-awq"
) -> None:
    """One line a fact: key, tab, value; at last the command that compiles the model by a recipe that suits it.

    Raises:
        ResourceError: ``copy_to`` is taken.
    """
    if copy_to is not None:
        files = files.copy_to(copy_to)
    model = files.model
    print(f"model\t{model.path}")
    if model.tokenizer is not None:
        print(f"tokenizer\t{model.tokenizer}")
    print(f"calibration\t{files.calibration}")
    print(f"evaluation\t{files.evaluation}")
    for name, value in (measured or {}).items():
        print(f"{name}\t{value:.4f}")
    command = ["qcompile", str(model.path), "--recipe", recipe, "--calib", str(files.calibration)]
    if copy_to is not None:
        command += ["-o", str(copy_to / "out")]
    print(f"compile\t{shlex.join(command)}")


def exit_from(main: Callable[[], None]) -> NoReturn:
    """Run a model's command line; a deliberate error becomes one line and its exit status."""
    try:
        main()
    except QCompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    sys.exit(0)
