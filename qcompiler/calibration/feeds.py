"""Complete feeds for a model from whatever the user gave: data, or nothing (then the model's own samples)."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.data import open_calibration
from qcompiler.calibration.fill import InputSpec, complete_feed, token_input
from qcompiler.calibration.sampling import random_feeds
from qcompiler.errors import CalibrationError

Feed = Mapping[str, npt.NDArray[Any]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CalibrationFeeds:
    """Feeds with every input filled in.

    Attributes:
        description: source, samples and windows, for the report.
        sha256: of all arrays in order.
    """

    feeds: list[Feed]
    description: dict[str, Any]
    sha256: str
    warnings: list[str] = field(default_factory=list)
