"""What a compiled model loses, as ``--max-drop`` counts it: a share between 0 and 1, on the calibration data.

Of an output that holds classes it is the share of rows whose first class is not the float model's (of a language model: the next token); of
any other |made - float| / |float| over all rows. A model with several such outputs has lost what the worst of them has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.errors import CalibrationError
from qcompiler.graph.disk import writing
from qcompiler.passes.measured_outputs import KL, End
from qcompiler.report.comparable_model import ComparableModel, open_comparable

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]
AGREEMENT, RELATIVE_ERROR = "rows with another first class", "relative error"


class DropMeter:
    """Measures models against a float one, which runs once.

    Args:
        reference: the float model.
        ends: its outputs that are measured.
        feeds: complete; every one is run.
        folder: for the float model's outputs that hold no classes.
    Raises:
        CalibrationError: the data does not fit, or the float model's outputs are not finite on it.
        InputError: it cannot be run.
    """

    def __init__(
        self,
        reference: Path,
        ends: Sequence[End],
        feeds: Sequence[Mapping[str, Array]],
        folder: Path,
        progress: Progress,
    ) -> None:
        self._feeds = feeds
        self._progress = progress
        self._names = [end.output.name or "" for end in ends]
        self._wanted: list[list[Array | Path]] = []
        self._measures: list[
            str
        ] = []  # of all outputs and feeds: an output's last axis may hold classes on some feeds alone
        with open_comparable(reference) as model:
            for index, arrays in enumerate(self._outputs(model, "running the float model")):
                kept: list[Array | Path] = []
                for number, (end, array) in enumerate(zip(ends, arrays, strict=True)):
                    classes = end.measure(array.shape) == KL
                    self._measures.append(AGREEMENT if classes else RELATIVE_ERROR)
                    finite = np.isfinite(array.max(axis=-1) if classes else array).all()
                    if array.size and not finite:
                        raise CalibrationError(
                            f"--max-drop: {self._names[number]} of the float model is not finite on feed {index + 1} "
                            "of the calibration data; leave that feed out"
                        )
                    place = folder / f"float-{index}-{number}.npy"
                    kept.append(array.argmax(axis=-1) if classes else place)
                    if not classes:
                        with writing(folder):
                            np.save(place, array)
                self._wanted.append(kept)

    @property
    def measure(self) -> str:
        """What is measured, in words."""
        return " / ".join(dict.fromkeys(self._measures))

    def drop_of(self, path: Path) -> float:
        """Of a compiled model; 1 or more where an output is not finite.

        Raises:
            InputError: it cannot be run.
        """
        rows = np.zeros((len(self._names), 2))  # for each output: those that differ, and all
        squares = np.zeros(
            (len(self._names), 2)
        )  # the same of what holds no classes: of the difference, and of the reference
        with open_comparable(path) as model:
            for kept, arrays in zip(self._wanted, self._outputs(model, "measuring the drop"), strict=True):
                for number, (wanted, made) in enumerate(zip(kept, arrays, strict=True)):
                    if isinstance(wanted, Path):
                        squares[number] += _squares(np.load(wanted).astype(np.float64), made)
                    else:
                        rows[number] += _rows(wanted, made)
        shares = np.concatenate([_share(rows), np.sqrt(_share(squares))])
        return float(shares.max()) if np.isfinite(shares).all() else 1.0

    def _outputs(self, model: ComparableModel, what: str) -> Iterator[list[Array]]:
        taken = {
            spec.name for spec in model.inputs
        }  # a weight with a default is an input no more once quantized
        for index, feed in enumerate(self._feeds):
            self._progress(what, index, len(self._feeds))
            made = model.run({name: array for name, array in feed.items() if name in taken}, self._names)
            yield [made[name] for name in self._names]


def _share(parts: Array) -> Array:
    """Of each output, 0 where there is nothing."""
    share: Array = parts[:, 0] / np.maximum(parts[:, 1], np.finfo(np.float64).tiny)
    return share


def _rows(wanted: Array, made: Array) -> tuple[float, float]:
    """Rows whose first class is not the one wanted, and all rows."""
    same = (made.argmax(axis=-1) == wanted) & np.isfinite(made.max(axis=-1))
    return float(wanted.size - same.sum()), float(wanted.size)


def _squares(reference: Array, made: Array) -> tuple[float, float]:
    """Sums of squares: of the difference, and of the reference."""
    return float(np.square(made - reference).sum()), float(np.square(reference).sum())
