"""What a convolution's kernel sees of its input: windows, each a row of as many numbers as the kernel has for one output.

A convolution is a product of such rows with its kernel laid flat [N, K] (each group of channels for itself), so that what algorithms know
of the rows of a linear's input they can know of a convolution too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import CalibrationError

PLACES = 512  # of one array at which windows are taken, at most: neighbours tell next to nothing new
_GOLDEN = (
    5**0.5 - 1
) / 2  # its multiples, modulo 1, lie evenly, however many, and in step with no row of places

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Window:
    """How a Conv walks over the axes of space of [batch, channels, *space].

    Attributes:
        kernel, strides, dilations: one for each axis.
        pads: before and after each axis.
        same: "SAME_UPPER" or "SAME_LOWER": pads follow from the input's shape instead; "" for those given.
        groups: of channels, each seen by its own share of the outputs.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    same: str = ""
    groups: int = 1

    @classmethod
    def of(cls, node: ir.Node, kernel: Sequence[int]) -> "Window":
        """That of a Conv whose kernel has the shape [N, channels, *kernel]."""
        axes = len(kernel) - 2
        pads = _integers(node, "pads") or (0,) * (2 * axes)
        auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
        return cls(
            tuple(kernel[2:]),
            _integers(node, "strides") or (1,) * axes,
            _integers(node, "dilations") or (1,) * axes,
            tuple(zip(pads[:axes], pads[axes:], strict=True)) if auto == "NOTSET" else ((0, 0),) * axes,
            auto if auto.startswith("SAME") else "",
            groups_of(node),
        )

    def rows(self, x: Array) -> npt.NDArray[np.float32]:
        """Windows of ``x`` [batch, channels, *space] at ``PLACES`` of its places at most: float32 [groups, rows, K].

        Raises:
            CalibrationError: x is of another rank, or its channels do not make groups.
        """
        axes = len(self.kernel)
        if x.ndim != axes + 2 or x.shape[1] % self.groups:
            raise CalibrationError(
                f"the data gives {list(x.shape)}, a convolution takes [batch, channels (a multiple of {self.groups}), "
                f"{axes} axes of space]"
            )
        space = x.shape[2:]
        padded = np.pad(x, ((0, 0), (0, 0), *self._padding(space)))
        reach = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        if 0 in x.shape or any(size < need for size, need in zip(padded.shape[2:], reach, strict=True)):
            return np.zeros(
                (self.groups, 0, x.shape[1] // self.groups * int(np.prod(self.kernel))), np.float32
            )
        views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + axes)))
        steps = tuple(slice(None, None, s) for s in self.strides)
        within = tuple(slice(None, None, d) for d in self.dilations)
        views = views[(slice(None), slice(None), *steps, *within)]
        places = (x.shape[0], *views.shape[2 : 2 + axes])
        batch, *at = np.unravel_index(_spread(int(np.prod(places))), places)
        places_of = np.moveaxis(views, 1, -1 - axes)  # [batch, *places, channels, *kernel]
        taken = places_of[(batch, *at)].astype(np.float32)
        grouped = taken.reshape(len(batch), self.groups, -1)
        return np.ascontiguousarray(grouped.transpose(1, 0, 2))

    def _padding(self, space: Sequence[int]) -> tuple[tuple[int, int], ...]:
        if not self.same:
            return self.pads
        found = []
        for size, k, stride, dilation in zip(space, self.kernel, self.strides, self.dilations, strict=True):
            total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
            small, large = total // 2, total - total // 2
            found.append((small, large) if self.same == "SAME_UPPER" else (large, small))
        return tuple(found)


@dataclass(frozen=True)
class Tap:
    """Where products read: a value, and of convolutions how they walk over it."""

    value: ir.Value
    window: Window | None = None


def groups_of(convolution: ir.Node) -> int:
    """Its groups of channels."""
    return convolution.attributes["group"].as_int() if "group" in convolution.attributes else 1


def _integers(node: ir.Node, name: str) -> tuple[int, ...]:
    return tuple(node.attributes[name].as_ints()) if name in node.attributes else ()


def _spread(count: int) -> npt.NDArray[np.int64]:
    """Of ``count`` places all, or ``PLACES`` at most that lie evenly."""
    if count <= PLACES:
        return np.arange(count)
    return np.unique((np.arange(PLACES) * _GOLDEN % 1 * count).astype(np.int64))
