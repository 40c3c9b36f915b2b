"""Correct the biases of convolutions for the mean error that rounding leaves in their outputs.

    b += E[y] - E[y'],      y a convolution's output in the float model, y' with all before it, and itself, rounded and corrected

for each output channel, the mean over calibration data and places (empirical bias correction: Nagel et al. 2019, section 4.2). Where an
image has large even areas, errors of rounding are alike in all of them, and without this they add up from layer to layer.

*Given* ``MeasureMeans`` on the float model before its weights were rounded, then QDQ with biases in int32.
*Result* other codes in the same biases; convolutions without a bias in integers are left alone, and so are
those in the bodies of branches and loops: what they make is not at hand from outside.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.borders import Borders
from qcompiler.calibration.observers import NOT_FINITE
from qcompiler.errors import CalibrationError
from qcompiler.graph.convolution import bias_of
from qcompiler.graph.extract import Piece, nodes_needed
from qcompiler.graph.reads import node_reads
from qcompiler.quant.bias_codes import moved_codes

Array = npt.NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
Means = dict[ir.Value, npt.NDArray[np.float64]]
"""By a convolution's output, whose name may change in between: the mean of each channel."""
Progress = Callable[[str, int, int], None]


class MeasureMeans(ir.passes.InPlacePass):
    """Finds the means of convolutions' outputs; the model is not changed.

    Args:
        wanted: the convolutions.
        feeds: calibration data; None: nothing is measured.
        means: where they go.
    """

    def __init__(self, wanted: Callable[[], list[ir.Node]], feeds: Feeds | None, means: Means) -> None:
        super().__init__()
        self._wanted = wanted
        self._feeds = feeds
        self.means = means

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        outputs = [node.outputs[0] for node in self._wanted()]
        if outputs and self._feeds is not None and not self.means:
            inputs = list(model.graph.inputs)
            piece = Piece(model, list(model.graph), inputs, outputs)
            counts: Counter[ir.Value] = Counter()
            for feed in self._feeds:
                made = piece.run({value: feed[value.name or ""] for value in inputs})
                for value, array in made.items():
                    if array.size:
                        mean = _channel_means(array)
                        self.means[value] = self.means[value] + mean if value in self.means else mean
                        counts[value] += 1
            for value in self.means:
                self.means[value] /= counts[value]
        return ir.passes.PassResult(model, modified=False)


class CorrectBiases(ir.passes.InPlacePass):
    """The pass; convolution after convolution, what each makes is computed once.

    Args:
        wanted: the convolutions.
        means: what ``MeasureMeans`` found.
        feeds: calibration data; None: nothing is corrected.
        folder, limit: where activations go past so many bytes.

    Raises CalibrationError where a mean is not finite: with ranges from a file nothing else looks at the data.
    """

    def __init__(
        self,
        wanted: Callable[[], list[ir.Node]],
        means: Means,
        feeds: Feeds | None,
        folder: Path,
        limit: int,
        progress: Progress,
    ) -> None:
        super().__init__()
        self._wanted = wanted
        self._means = means
        self._feeds = feeds
        self._folder = folder
        self._limit = limit
        self._progress = progress
        self._done = False

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in self._wanted() if node.outputs[0] in self._means and _rounded_bias(node)]
        if self._done or not nodes or self._feeds is None:
            return ir.passes.PassResult(model, modified=False)
        self._done = True
        for node in nodes:
            if not np.isfinite(self._means[node.outputs[0]]).all():
                raise CalibrationError(f"{node.outputs[0].name}: {NOT_FINITE}")
        places = {node: place for place, node in enumerate(model.graph)}
        nodes.sort(key=places.__getitem__)
        feeds = self._feeds
        kept = Borders[ir.Value](len(feeds), self._folder, self._limit)
        for index, feed in enumerate(feeds):
            for value in model.graph.inputs:
                kept.put(index, value, feed[value.name or ""])
        ends = {node.outputs[0] for node in nodes} | set(model.graph.inputs)
        bases = [_bases(node, ends) for node in nodes]
        last = {value: step for step, base in enumerate(bases) for value in base}
        for step, (node, base) in enumerate(zip(nodes, bases, strict=True)):
            self._progress(f"correcting {node.name}", step, len(nodes))
            self._correct(model, node, sorted(base, key=lambda value: value.name or ""), kept)
            for value in [value for value, end in last.items() if end <= step]:
                kept.drop(value)
                del last[value]
        return ir.passes.PassResult(model, modified=True)

    def _correct(self, model: ir.Model, node: ir.Node, base: list[ir.Value], kept: Borders[ir.Value]) -> None:
        """One convolution, from the outputs of those before it."""
        output = node.outputs[0]
        needed = nodes_needed(list(model.graph), base, [output])
        piece = Piece(model, [each for each in model.graph if each in needed], base, [output])
        total: npt.NDArray[np.float64] | float = 0.0
        count = 0
        for index in range(len(kept)):
            array = piece.run({value: kept.array(index, value) for value in piece.inputs})[output]
            if array.size:
                total = total + _channel_means(array)
                count += 1
            kept.put(index, output, array)
        missing = self._means[output] - total / max(count, 1)
        shift = _shift_bias(node, missing).reshape(-1, *[1] * (kept.array(0, output).ndim - 2))
        for index in range(len(kept)):
            array = kept.array(index, output)
            kept.put(index, output, (array + shift).astype(array.dtype))


def _bases(node: ir.Node, ends: set[ir.Value]) -> set[ir.Value]:
    """The nearest of ``ends`` that a convolution is computed from."""
    found: set[ir.Value] = set()
    seen: set[ir.Value] = set()
    stack = list(node_reads(node))
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in ends:
            found.add(value)
            continue
        producer = value.producer()
        if producer is not None:
            stack.extend(node_reads(producer))
    return found


def _channel_means(array: Array) -> npt.NDArray[np.float64]:
    """Of [batch, channels, ..], at least one number each."""
    with np.errstate(invalid="ignore"):  # of infinities, which the observers of ranges name, or CorrectBiases
        means: npt.NDArray[np.float64] = array.mean(axis=(0, *range(2, array.ndim)), dtype=np.float64)
    return means


def _rounded_bias(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear of a convolution's bias in int32."""
    value = bias_of(node)
    dequantize = None if value is None else value.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    codes = dequantize.inputs[0]
    return dequantize if codes is not None and codes.dtype == ir.DataType.INT32 else None


def _shift_bias(node: ir.Node, missing: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Adds to the bias what it can hold; returns what was added."""
    dequantize = _rounded_bias(node)
    assert dequantize is not None
    codes, scale = dequantize.inputs[0], dequantize.inputs[1]
    assert codes is not None and scale is not None
    assert codes.const_value is not None and scale.const_value is not None
    steps = scale.const_value.numpy().astype(np.float64)
    moved, added = moved_codes(codes.const_value.numpy(), missing, steps)
    codes.const_value = ir.Tensor(moved, name=codes.name)
    return added
