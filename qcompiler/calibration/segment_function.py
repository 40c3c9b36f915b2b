"""A segment of a graph as what ``algorithms.autoround`` tunes: a differentiable function of its weights, with inputs and targets."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompiler.algorithms.arrays import Device
from qcompiler.calibration.collector import Collector
from qcompiler.calibration.executor import Executor
from qcompiler.calibration.observers import NOT_FINITE
from qcompiler.calibration.segments import Segment
from qcompiler.errors import CalibrationError
from qcompiler.graph.reads import moved_by

if TYPE_CHECKING:
    from torch import Tensor


def learnable_outputs(
    nodes: Sequence[ir.Node], weights: Sequence[ir.Value], later: Sequence[ir.Value], segment: Segment
) -> list[ir.Value]:
    """The outputs of a segment that say how good its weights are.

    Those that depend on a weight through data and that later segments read (``later``); of the last segment, the graph's own.
    """
    trunk = moved_by(nodes, weights)

    def counts(value: ir.Value) -> bool:
        return value in trunk and (value.dtype is None or value.dtype.is_floating_point())

    return [value for value in later if counts(value)] or [
        value for value in segment.outputs if counts(value)
    ]


class SegmentFunction:
    """Outputs of a segment for given weights, and what they should be.

    Args:
        nodes: of the segment, as they now are.
        weights: the values [K, N] that the linears read, in whose place the tuned ones are put.
        quantized: where the inputs come from: what the quantized segments before hand on.
        floats: where the targets are: what the float model computes of ``outputs``.
        stepped: called with (steps done, of how many) while the weights are tuned.
    Raises:
        CalibrationError: an operator cannot be differentiated here.
        ResourceError: torch is missing.
    """

    def __init__(
        self,
        model: ir.Model,
        nodes: Sequence[ir.Node],
        segment: Segment,
        weights: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        quantized: Collector,
        floats: Collector,
        device: Device,
        stepped: Callable[[int, int], None],
    ) -> None:
        self.stepped = stepped
        self.samples = quantized.samples
        self._weights, self._outputs, self._device = weights, outputs, device
        self._quantized, self._floats = quantized, floats
        self._run = Executor(model, nodes, segment.inputs, outputs, replaced=weights, device=device)

    def outputs(self, index: int, weights: "Sequence[Tensor]") -> "list[Tensor]":
        """What the segment computes of a sample with weights [N, K]."""
        feeds = {value: self._quantized.array(index, value) for value in self._run.given}
        replaced = {value: weight.T for value, weight in zip(self._weights, weights, strict=True)}
        made = self._run(feeds, replaced)
        return [made[value] for value in self._outputs]

    def targets(self, index: int) -> "list[Tensor]":
        """What the float model computes.

        Raises:
            CalibrationError: NaN or infinity.
        """
        import torch

        from qcompiler.calibration.torch_operators.call import as_tensor

        targets = [as_tensor(self._floats.array(index, value), self._device) for value in self._outputs]
        for value, target in zip(self._outputs, targets, strict=True):
            if not bool(torch.isfinite(target).all()):
                raise CalibrationError(f"{value.name}: {NOT_FINITE}")
        return targets
