"""Where the ranges of activations come from: calibration data, or what an earlier calibration saved; they are saved again either way."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompiler.calibration.channel_sizes import Sizes, observe_channel_sizes
from qcompiler.calibration.range_observers import RangeMethod
from qcompiler.calibration.ranges_of_model import Feed, ObservedRange, Progress, observe_ranges
from qcompiler.calibration.saved_ranges import SavedRanges, read_ranges, write_ranges
from qcompiler.errors import CalibrationError

SUFFIX = ".json"


def ranges_of(
    calibration: str | os.PathLike[str] | Iterable[Feed] | None, named: str, recipe: str | None
) -> tuple[SavedRanges | None, str | os.PathLike[str] | Iterable[Feed] | None, bool]:
    """The saved ranges of a compile, what is left of its calibration data, and whether the ranges were given in place of data.

    Args:
        calibration: data as the user gave them, or a calibration.json.
        named: a calibration.json that the recipe names; "" for none.
        recipe: its name, where it asks for static ranges.
    Raises:
        CalibrationError: nothing asks for ranges, two files of them, or one that does not read.
    """
    path = None
    if isinstance(calibration, (str, os.PathLike)) and os.fspath(calibration).endswith(SUFFIX):
        path, calibration = Path(calibration), None
    given = path is not None
    if path is None:
        if not named:
            return None, calibration, False
        path = Path(named)
    elif named and Path(named) != path:
        raise CalibrationError(f"{path}: calib.ranges_from names {named} already; give one of them")
    if recipe is None:
        raise CalibrationError(
            f"{path}: has ranges for activations: static, which the recipe does not ask for; "
            "give data that the model runs on, or a recipe such as w8a8-static"
        )
    return read_ranges(path), calibration, given


class RangeSource:
    """Finds ranges and remembers them.

    Args:
        feeds: calibration data; None where there are none.
        method: how a range comes of what was seen.
        saved: ranges that are used in place of the data's.
    """

    def __init__(
        self, feeds: Iterable[Feed] | None, method: RangeMethod, saved: SavedRanges | None, progress: Progress
    ) -> None:
        self._feeds = feeds
        self._method = method
        self._saved = saved
        self._progress = progress
        self._wanted: list[str] = []
        self._found: dict[str, ObservedRange] = {}
        self._channels: dict[str, Sizes] = {}

    def ranges(
        self, model: ir.Model, values: Sequence[ir.Value], bits: int = 8, symmetric: bool = False
    ) -> Mapping[str, ObservedRange]:
        """The ranges of values by name; those that were never reached are missing.

        Args:
            bits, symmetric: of the codes that are to cover them (``entropy``, ``mse``, ``percentile``).
        Raises:
            CalibrationError: see ``observe_ranges`` and ``SavedRanges.of``.
        """
        names = [value.name or "" for value in values]
        if self._saved is not None:
            found = self._saved.of(names)
        else:
            found = observe_ranges(
                model,
                values,
                self._feeds or (),
                self._method,
                progress=self._progress,
                bits=bits,
                symmetric=symmetric,
            )
        self._wanted += names
        self._found |= found
        return found

    def channel_sizes(self, model: ir.Model, values: Sequence[ir.Value]) -> Mapping[str, Sizes]:
        """The largest size of each channel by name; of saved ranges those that belong to them, so that what was balanced is so again."""
        if self._saved is not None:
            found = {
                name: sizes
                for value in values
                if (sizes := self._saved.channels.get(name := value.name or "")) is not None
            }
        else:
            sizes_of = observe_channel_sizes(model, values, self._feeds or ())
            found = {name: sizes for name, sizes in sizes_of.items() if np.isfinite(sizes).all()}
        self._channels |= found
        return found

    def save(self, path: Path, data: str, model: str) -> bool:
        """Writes all that was found; False where nothing was looked for.

        Args:
            data: what ranges were found on, where they were not saved before.
            model: fingerprint of the prepared model.
        """
        if not self._wanted:
            return False
        words = self._saved.data if self._saved else data
        write_ranges(path, self._found, self._wanted, words, model, self._channels)
        return True
