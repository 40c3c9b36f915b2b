"""A piece of a graph as a differentiable function of its inputs and of the weights put in place of its own.

The counterpart of ``graph.extract.Piece``: that runs a piece in ONNX Runtime, this one node by node in torch, so that gradients flow. What
depends on nothing that is given is computed once; float weights stay views of the mapped file. torch is an extra: it is imported when the
first executor is made.
"""

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import CalibrationError, ResourceError
from qcompiler.graph.extract import is_constant
from qcompiler.graph.reads import bodies_of
from qcompiler.graph.weight_form import read_weight

if TYPE_CHECKING:
    from torch import Tensor

    from qcompiler.calibration.torch_operators.call import Call

Array = npt.NDArray[Any]
WITHOUT_AUTOROUND = "give the weights of its segment an algorithm without autoround (a rule of the recipe)"
ONNX_DOMAINS = ("", "ai.onnx")


class Executor:
    """The function from ``given`` (and replaced) values to ``wanted`` ones.

    Args:
        model: the nodes belong to its graph; not changed.
        nodes: candidates, in graph order; those that ``wanted`` needs are taken, and constants' nodes wherever they stand.
        given: values that are fed.
        wanted: values that are returned.
        replaced: values for which a tensor is given at each call: weights under training.
        remedy: what to do where a node cannot be computed here, for the message.
        device: of torch.
    Raises:
        CalibrationError: an operator, or a form of one, that is not written here; names the node.
        ResourceError: torch is missing.
    """

    def __init__(
        self,
        model: ir.Model,
        nodes: Sequence[ir.Node],
        given: Collection[ir.Value],
        wanted: Sequence[ir.Value],
        replaced: Collection[ir.Value] = (),
        remedy: str = WITHOUT_AUTOROUND,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        if importlib.util.find_spec("torch") is None:
            raise ResourceError(f"gradients need torch; pip install torch, or {remedy}")
        from qcompiler.calibration import torch_operators

        self.wanted = tuple(wanted)
        self._remedy = remedy
        self._device = device
        self._operators = torch_operators.OPERATORS
        self._host_inputs = torch_operators.HOST_INPUTS
        free = {*given, *replaced}
        taken, self._leaves = _collect(nodes, free, wanted)
        self.given = tuple(value for value in given if value in _read(taken) or value in self.wanted)
        self._calls = [self._call_of(model, node) for node in taken]
        changing = set(free)
        self._fixed: list[Call] = []
        self._live: list[Call] = []
        for call in self._calls:
            if any(value in changing for value in call.node.inputs):
                changing.update(call.node.outputs)
                self._live.append(call)
            else:
                self._fixed.append(call)
        self._constants: dict[ir.Value, Tensor] | None = None
        self._last_reader = {
            value: index
            for index, call in enumerate(self._live)
            for value in call.node.inputs
            if value is not None and value in changing
        }

    def __call__(
        self, feeds: Mapping[ir.Value, "Array | Tensor"], weights: Mapping[ir.Value, "Tensor"] | None = None
    ) -> dict[ir.Value, "Tensor"]:
        """The wanted values; a value is let go after its last reader, unless the gradient needs it."""
        from qcompiler.calibration.torch_operators.call import as_tensor

        if self._constants is None:
            self._constants = self._fold()
        values: dict[ir.Value, Any] = dict(self._constants)
        for value in self.given:
            fed = feeds[value]
            values[value] = as_tensor(fed, self._device) if isinstance(fed, np.ndarray) else fed
        values.update(weights or {})
        for index, call in enumerate(self._live):
            self._run(call, values)
            for read in call.node.inputs:
                if read is not None and self._last_reader.get(read) == index and read not in self.wanted:
                    values.pop(read, None)
        return {value: values[value] for value in self.wanted}

    def _fold(self) -> dict[ir.Value, "Tensor"]:
        """Everything that no feed and no replaced weight has a part in, as far as the rest reads it."""
        import torch

        values: dict[ir.Value, Any] = {value: self._leaf(value) for value in self._leaves}
        with torch.no_grad():
            for call in self._fixed:
                self._run(call, values)
        read = {value for call in self._live for value in call.node.inputs} | set(self.wanted)
        return {value: tensor for value, tensor in values.items() if value in read}

    def _leaf(self, value: ir.Value) -> "Tensor":
        """A stored tensor."""
        from qcompiler.calibration.torch_operators.call import as_tensor

        array = _constant_array(value)
        # Small whole numbers are shapes and axes: they are read as plain numbers.
        host = array.dtype.kind == "i" and array.size <= 64
        try:
            return as_tensor(array, "cpu" if host else self._device)
        except TypeError as error:
            raise CalibrationError(
                f"{value.name}: torch computes nothing with numbers stored as {array.dtype}; {self._remedy}"
            ) from error

    def _run(self, call: "Call", values: dict[ir.Value, Any]) -> None:
        node = call.node
        inputs = [None if value is None else values[value] for value in node.inputs]
        if self._device != "cpu":
            inputs = self._together(node, inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        try:
            made = self._operators[_key(node)](call, *inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise CalibrationError(
                f"{call.where}: cannot be computed in torch: {str(error).splitlines()[0]}; {self._remedy}"
            ) from error
        outputs = made if isinstance(made, tuple) else (made,)
        for index, (value, tensor) in enumerate(zip_longest(node.outputs, outputs[: len(node.outputs)])):
            if tensor is None and (value in self.wanted or value.uses()):
                raise call.refuse(f"output {index}")
            values[value] = tensor

    def _together(self, node: ir.Node, inputs: list[Any]) -> list[Any]:
        """Operands on the device, what is read as plain numbers on the CPU."""
        host = self._host_inputs.get(_key(node), frozenset())
        if all(tensor is None or tensor.device.type == "cpu" for tensor in inputs):
            return inputs  # a chain that computes shapes stays where it is
        return [
            None if tensor is None else tensor.to("cpu" if index in host else self._device)
            for index, tensor in enumerate(inputs)
        ]

    def _call_of(self, model: ir.Model, node: ir.Node) -> "Call":
        from qcompiler.calibration.torch_operators.call import Call

        key = _key(node)
        call = Call(node, model.graph.opset_imports.get(node.domain, 1), self._remedy)
        if bodies_of(node):
            raise call.refuse("control flow")
        if key not in self._operators:
            raise call.refuse(f"the operator {key}")
        return call


def _collect(
    nodes: Sequence[ir.Node], free: Collection[ir.Value], wanted: Sequence[ir.Value]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that the wanted values need, in order, and the constants that these read."""
    candidates, leaves, needed = set(nodes), dict[ir.Value, None](), set[ir.Node]()
    stack, seen = list(wanted), set(free)
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if (value.is_initializer() and not value.is_graph_input()) or _is_stored_weight(node):
            leaves[value] = None
            continue
        if node is None or (node not in candidates and not is_constant(value)):
            raise CalibrationError(
                f"{value.name}: is needed before it is computed; the graph is not in topological order"
            )
        needed.add(node)
        stack.extend(source for source in node.inputs if source is not None)
    earlier = needed - candidates
    ordered = [node for node in nodes if node in needed]
    if earlier:
        graph = next(iter(earlier)).graph
        assert graph is not None
        ordered = [node for node in graph if node in earlier] + ordered
    return ordered, list(leaves)


def _is_stored_weight(node: ir.Node | None) -> bool:
    """Whether a node is the last of a quantized weight, which is read whole."""
    return node is not None and is_constant(node.outputs[0]) and read_weight(node) is not None


def _constant_array(value: ir.Value) -> Array:
    found = read_weight(value.producer())
    if found is not None:
        quantized, layout = found
        weight = quantized.dequantize()
        return weight.T if layout == "kn" else weight
    assert value.const_value is not None, value.name
    array: Array = value.const_value.numpy()
    return array


def _read(nodes: Sequence[ir.Node]) -> set[ir.Value | None]:
    return {value for node in nodes for value in node.inputs}


def _key(node: ir.Node) -> str:
    return node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}::{node.op_type}"
