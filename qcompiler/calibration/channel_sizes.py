"""The largest size that each channel of a value has on calibration data."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.extract import Piece

Sizes = npt.NDArray[np.float64]


def observe_channel_sizes(
    model: ir.Model, values: Sequence[ir.Value], feeds: Iterable[Mapping[str, npt.NDArray[Any]]]
) -> dict[str, Sizes]:
    """Of float values [batch, channels, ..] by name: float64 [channels]; nothing without feeds. NaN and infinity are sizes too.

    All values of one feed are in memory together.
    """
    inputs = list(model.graph.inputs)
    piece: Piece | None = None
    sizes: dict[str, Sizes] = {}
    for feed in feeds:
        piece = piece or Piece(model, list(model.graph), inputs, list(dict.fromkeys(values)))
        for value, array in piece.run({value: feed[value.name or ""] for value in inputs}).items():
            found = np.abs(array).max(axis=(0, *range(2, array.ndim)), initial=0).astype(np.float64)
            name = value.name or ""
            sizes[name] = np.maximum(sizes.get(name, found), found)
    return sizes
