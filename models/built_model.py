"""What every model of this folder is built into, and the choices that decoders share.

Each model file has the same four functions:

    build(...) -> BuiltModel           the ONNX, from the cache or built into it
    calibration_data() -> Path         a file for ``--calib``
    evaluation_data() -> Path          a file for ``--text`` or ``--data``; no part of the calibration data
    measure(model, ...) -> dict        the model's metric on the evaluation data, run by ONNX Runtime
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NoReturn

from qcompiler.errors import QCompilerError


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
    return options


def print_built(
    model: BuiltModel, calibration: Path, evaluation: Path, measured: dict[str, float] | None
) -> None:
    """One line a fact: key, tab, value."""
    print(f"model\t{model.path}")
    if model.tokenizer is not None:
        print(f"tokenizer\t{model.tokenizer}")
    print(f"calibration\t{calibration}")
    print(f"evaluation\t{evaluation}")
    for name, value in (measured or {}).items():
        print(f"{name}\t{value:.4f}")


def exit_from(main: Callable[[], None]) -> NoReturn:
    """Run a model's command line; a deliberate error becomes one line and its exit status."""
    try:
        main()
    except QCompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    sys.exit(0)
