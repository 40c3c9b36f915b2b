"""Gradients at the products of a model, by backpropagation through the whole of it that holds one segment at a time.

Forward, each segment runs in ONNX Runtime, and its border activations are kept (in a file past the limit). Backward, from the segment that
makes the output to the first, each runs again in torch (``calibration.executor``), one sample at a time, and the gradients of its inputs
are handed on to the segments that made them. Two forward runs and a backward one, however many products there are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.borders import Borders
from qcompiler.calibration.executor import Executor
from qcompiler.calibration.segments import Segment
from qcompiler.graph.extract import Piece
from qcompiler.graph.reads import moved_by

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
Start = Callable[[int, ir.Value, "Tensor"], "Tensor"]
"""(index of the sample, an output, its values) -> the gradient there."""


@dataclass(frozen=True, eq=False)
class Product:
    """A node that multiplies with, or gathers from, a weight.

    Attributes:
        index: which of its inputs that is; the other of the first two is the activation, or the indices.
        values: what the node reads there.
    """

    node: ir.Node
    index: int
    values: Callable[[], Array]

    @property
    def operand(self) -> ir.Value:
        """The weight as the node reads it."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value

    @property
    def reads(self) -> ir.Value:
        """The activation or the indices."""
        value = self.node.inputs[1 - self.index]
        assert value is not None
        return value


@dataclass(frozen=True, eq=False)
class AtProduct:
    """What one sample does at a product.

    Attributes:
        reads: the activation [..., K], or indices.
        gradient: at the product's result, [..., N].
    """

    product: Product
    reads: "Tensor"
    gradient: "Tensor"


class Backpropagation:
    """Through the segments of a model; made before anything runs, so that what torch cannot do is refused at once.

    Args:
        model: not changed.
        segments: of the model, in order.
        products: where gradients are wanted; in the main graph.
        outputs: of the graph, each made by a node; gradients start there.
        remedy: what to do where an operator cannot be differentiated, for the message.
    Raises:
        CalibrationError: an operator, or a form of one, that is not written for torch; names the node.
        ResourceError: torch is missing.
    """

    def __init__(
        self,
        model: ir.Model,
        segments: Sequence[Segment],
        products: Sequence[Product],
        outputs: Sequence[ir.Value],
        remedy: str,
    ) -> None:
        self._model = model
        self._outputs = list(outputs)
        makers = {value.producer() for value in outputs}
        last = max(segment.index for segment in segments if not makers.isdisjoint(segment.nodes))
        self.segments = list(segments[: last + 1])
        whole = [node for segment in self.segments for node in segment.nodes]
        self._moved = moved_by(whole, [product.operand for product in products])
        self._last_reader = {value: segment.index for segment in self.segments for value in segment.inputs}
        self._parts: list[_Part] = []
        for segment in self.segments:
            ends = [
                value
                for value in segment.outputs
                if value in self._moved
                and (value in self._outputs or self._last_reader.get(value, -1) > segment.index)
            ]
            if not ends:
                continue
            nodes = set(segment.nodes)
            own = [product for product in products if product.node in nodes]
            seen = [value for product in own for value in (product.node.outputs[0], product.reads)]
            operands = list(dict.fromkeys(product.operand for product in own))
            run = Executor(
                model,
                segment.nodes,
                segment.inputs,
                list(dict.fromkeys([*ends, *seen])),
                replaced=operands,
                remedy=remedy,
            )
            self._parts.append(_Part(segment, own, ends, run))

    def run(
        self, feeds: Sequence[Mapping[str, Array]], folder: Path, limit: int, start: Start
    ) -> Iterator[tuple[int, list[AtProduct]]]:
        """(sample, what it does at the products of a segment), for each sample of each segment, from the last segment to the first; once.

        Args:
            feeds: complete, by input name.
            folder: for border activations past ``limit`` bytes, and as much of their gradients.
        Raises:
            CalibrationError: ONNX Runtime or torch cannot run the model on this data.
        """
        borders = self._forward(feeds, folder, limit)
        gradients = Borders[ir.Value](len(feeds), folder, limit)
        while self._parts:
            part = self._parts.pop()  # its executor holds constants, which go with it
            weights = part.weights()
            for index in range(len(feeds)):
                yield index, self._backward(part, weights, index, borders, gradients, start)
            for value in part.ends:
                gradients.drop(value)

    def _forward(self, feeds: Sequence[Mapping[str, Array]], folder: Path, limit: int) -> Borders[ir.Value]:
        """What every segment reads, of every sample."""
        borders = Borders[ir.Value](len(feeds), folder, limit)
        inputs = {value.name: value for value in self._model.graph.inputs}
        for index, feed in enumerate(feeds):
            for name, array in feed.items():
                borders.put(index, inputs[name], array)
        for segment in self.segments:
            outputs = [value for value in segment.outputs if self._last_reader.get(value, -1) > segment.index]
            if not outputs:
                continue
            piece = Piece(self._model, segment.nodes, segment.inputs, outputs)
            for index in range(len(feeds)):
                for value, array in piece.run(borders.sample(index)).items():
                    # A copy: ONNX Runtime's own array would keep all the memory of its session for as long as it is kept.
                    borders.put(index, value, array.copy())
        return borders

    def _backward(
        self,
        part: "_Part",
        weights: "Mapping[ir.Value, Tensor]",
        index: int,
        borders: Borders[ir.Value],
        gradients: Borders[ir.Value],
        start: Start,
    ) -> list[AtProduct]:
        """One sample through one segment; the gradients of the segment's inputs are added to ``gradients``."""
        import torch

        from qcompiler.calibration.torch_operators.call import as_tensor

        fed = {value: as_tensor(borders.array(index, value)) for value in part.run.given}
        moved = [v for v in part.run.given if v in self._moved and fed[v].is_floating_point()]
        for value in moved:
            fed[value].requires_grad_()
        made = part.run(fed, weights)
        arrived = gradients.sample(index)
        ends = [(made[value], torch.from_numpy(arrived[value])) for value in part.ends if value in arrived]
        ends += [
            (made[value], start(index, value, made[value].detach()))
            for value in self._outputs
            if value in part.ends
        ]
        ends = [(end, gradient) for end, gradient in ends if end.requires_grad]
        results = [made[product.node.outputs[0]] for product in part.products]
        found = torch.autograd.grad(
            [end for end, _ in ends],
            [*results, *(fed[value] for value in moved)],
            [gradient for _, gradient in ends],
            allow_unused=True,
            materialize_grads=True,
        )
        for value, gradient in zip(moved, found[len(results) :], strict=True):
            total = gradient + torch.from_numpy(arrived[value]) if value in arrived else gradient
            gradients.put(index, value, total.numpy())
        return [
            AtProduct(product, made[product.reads].detach(), gradient)
            for product, gradient in zip(part.products, found, strict=False)
        ]


@dataclass(frozen=True, eq=False)
class _Part:
    """A segment, its products, where gradients reach it, and what computes it."""

    segment: Segment
    products: list[Product]
    ends: list[ir.Value]
    run: Executor

    def weights(self) -> "dict[ir.Value, Tensor]":
        """Those of the products: leaves, so that a graph is kept where no input needs a gradient.

        Returns:
            of each product's operand, what its node reads: [K, N], or [N, K] where rows are gathered.
        """
        from qcompiler.calibration.torch_operators.call import as_tensor

        return {product.operand: as_tensor(product.values()).requires_grad_() for product in self.products}
