"""calibration.json: ranges of activations as plain values, to be looked at, edited and used again without the data.

    {"version": 1,
     "model": "fingerprint of the model, as it was prepared for quantization; null in a file that is for any",
     "data": "what the ranges were found on, in words",
     "ranges": {"tensor": {"lowest": -1.5, "highest": 2.0, "method": "minmax", "batches": 16, "numbers": 4194304}},
     "channels": {"tensor": [1.5, 0.25]},
     "unseen": ["tensors of which calibration saw nothing"]}

``channels``, the largest size of each channel, is there where a model's channels were balanced; its ranges are of the balanced ones.
Ends are written with as many digits as give the same number again.
"""

import json
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.range_observers import RangeMethod
from qcompiler.calibration.ranges_of_model import ObservedRange
from qcompiler.errors import CalibrationError
from qcompiler.graph.disk import write_whole

NAME = "calibration.json"
VERSION = 1
_NAMED = 3  # tensors that a message names
_AGAIN = "calibrate again, or give the file of this model"


@dataclass(frozen=True)
class SavedRanges:
    """What a calibration.json says.

    Attributes:
        path: of the file, for messages.
        model: fingerprint of the model that the ranges are of; None: not bound to one.
        data: what they were found on, in words.
        ranges: by tensor.
        unseen: tensors of which calibration saw nothing.
        channels: the largest size of each channel, by tensor.
    """

    path: Path
    model: str | None
    data: str
    ranges: Mapping[str, ObservedRange]
    unseen: frozenset[str]
    channels: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    def require_model(self, fingerprint: str) -> None:
        """Raises CalibrationError where the ranges are of another model."""
        if self.model is not None and self.model != fingerprint:
            raise CalibrationError(
                f"{self.path}: has the ranges of another model ({self.model[:12]}.., and this one is {fingerprint[:12]}..): "
                f"other weights, nodes or names; {_AGAIN}"
            )

    def of(self, wanted: Collection[str]) -> dict[str, ObservedRange]:
        """The ranges of the wanted tensors; those that calibration saw nothing of are not among them, what else the file holds is left out.

        Raises:
            CalibrationError: the file says nothing of a wanted tensor; names tensors.
        """
        known = {*self.ranges, *self.unseen}
        lacking = sorted(name for name in wanted if name not in known)
        if lacking:
            rest = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
            raise CalibrationError(
                f"{self.path}: says nothing of {', '.join(lacking[:_NAMED])}{rest} "
                f"(of {len(wanted)} tensors, {len(known)} in the file); {_AGAIN}"
            )
        return {name: self.ranges[name] for name in wanted if name in self.ranges}


def write_ranges(
    path: Path,
    ranges: Mapping[str, ObservedRange],
    wanted: Collection[str],
    data: str,
    model: str | None,
    channels: Mapping[str, npt.NDArray[np.float64]] | None = None,
) -> None:
    """Write ranges as they were observed; the same ranges give the same bytes.

    Args:
        ranges: by tensor.
        wanted: the tensors that were to be observed; those without a range are noted as unseen.
        data: what the ranges were found on, for whoever reads the file.
        model: fingerprint of the model that they are of.
        channels: the largest size of each channel, by tensor, finite.
    Raises:
        ResourceError: the file cannot be written.
    """
    body = {
        "version": VERSION,
        "model": model,
        "data": data,
        "ranges": {
            name: {
                "lowest": one.lowest,
                "highest": one.highest,
                "method": one.method,
                "batches": one.batches,
                "numbers": one.numbers,
            }
            for name, one in sorted(ranges.items())
        },
        **(
            {"channels": {name: sizes.tolist() for name, sizes in sorted(channels.items())}}
            if channels
            else {}
        ),
        "unseen": sorted(name for name in wanted if name not in ranges),
    }
    write_whole(path, (json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_ranges(path: Path) -> SavedRanges:
    """What the file says, all of it checked.

    Raises:
        CalibrationError: no such file, not one of ours, or damaged; names the tensor.
    """
    body = _parsed(path)
    ranges = {name: _range(path, name, fields) for name, fields in body["ranges"].items()}
    channels = {name: _sizes(path, name, sizes) for name, sizes in body.get("channels", {}).items()}
    return SavedRanges(path, body["model"], body["data"], ranges, frozenset(body["unseen"]), channels)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise CalibrationError(
            f"{path}: cannot be read ({error.strerror}); give the path of a calibration.json"
        ) from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError alike
        raise CalibrationError(f"{path}: not JSON ({error}); {_AGAIN}") from error
    if not isinstance(body, dict) or body.keys() - {"channels"} != {
        "version", "model", "data", "ranges", "unseen",
    }:  # fmt: skip
        raise CalibrationError(
            f"{path}: holds no ranges (version, model, data, ranges, unseen); give the path of a calibration.json"
        )
    if body["version"] != VERSION:
        raise CalibrationError(f"{path}: is of version {body['version']}, and {VERSION} is read; {_AGAIN}")
    if not isinstance(body["ranges"], dict) or not isinstance(body["unseen"], list):
        raise CalibrationError(f"{path}: ranges has to be a mapping from tensors and unseen a list; {_AGAIN}")
    if not isinstance(body.get("channels", {}), dict):
        raise CalibrationError(f"{path}: channels has to be a mapping from tensors; {_AGAIN}")
    if not (body["model"] is None or isinstance(body["model"], str)) or not isinstance(body["data"], str):
        raise CalibrationError(f"{path}: model has to be a fingerprint or null, and data text; {_AGAIN}")
    if not all(isinstance(name, str) for name in body["unseen"]):
        raise CalibrationError(f"{path}: unseen has to be a list of names; {_AGAIN}")
    return body


def _sizes(path: Path, name: str, sizes: Any) -> npt.NDArray[np.float64]:
    numbers = isinstance(sizes, list) and all(
        isinstance(size, (int, float)) and not isinstance(size, bool) and math.isfinite(size) and size >= 0
        for size in sizes
    )
    if not numbers:
        raise CalibrationError(
            f"{path}: {name}: the sizes of channels have to be finite numbers, not below 0; {_AGAIN}"
        )
    return np.array(sizes, np.float64)


def _range(path: Path, name: str, fields: Any) -> ObservedRange:
    where = f"{path}: {name}"
    if not isinstance(fields, dict) or fields.keys() != {"lowest", "highest", "method", "batches", "numbers"}:
        raise CalibrationError(
            f"{where}: has to have lowest, highest, method, batches and numbers, and nothing else"
        )
    if fields["method"] not in get_args(RangeMethod):
        raise CalibrationError(
            f"{where}: method has to be one of {', '.join(get_args(RangeMethod))}, not {fields['method']!r}"
        )
    if not all(type(fields[key]) is int and fields[key] >= 0 for key in ("batches", "numbers")):
        raise CalibrationError(f"{where}: batches and numbers have to be whole numbers from 0 on")
    lowest, highest = (_end(fields[key]) for key in ("lowest", "highest"))
    if not lowest <= highest:  # nor where one is NaN
        raise CalibrationError(f"{where}: lowest and highest have to be finite numbers in this order")
    return ObservedRange(lowest, highest, fields["method"], fields["batches"], fields["numbers"])


def _end(value: Any) -> float:
    """NaN for anything but a finite number."""
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        return math.nan
    return float(value)
