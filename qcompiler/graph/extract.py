"""A piece of a graph as a model of its own, and the session that runs it.

Large constants are not copied into the piece: where they are read they become inputs, fed from the mapped file (or, for a quantized
weight, from its dequantized values), so a piece costs the memory of its activations and of what has to be laid out anew.
"""

import ctypes
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from qcompiler.errors import CalibrationError
from qcompiler.graph.reads import node_reads
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.graph.weight_form import read_weight
from qcompiler.graph.weights import constant_view

Array = npt.NDArray[Any]
INLINE_BYTES = 65_536  # constants up to this size are written into the piece itself


class Piece:
    """A runnable piece of a graph: feeds for ``inputs`` in, arrays for ``outputs`` out.

    Args:
        model: the nodes belong to its graph; not changed.
        nodes: candidates, in graph order; those that ``outputs`` need are taken.
        inputs: values that are fed.
        outputs: values that are wanted.
        threads: of ONNX Runtime; 0 for its own choice.
        arena: whether memory stays with the session between runs; without, many open pieces hold only what the one at work needs.
    """

    def __init__(
        self,
        model: ir.Model,
        nodes: Sequence[ir.Node],
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        threads: int = 0,
        arena: bool = True,
    ) -> None:
        self.outputs = tuple(outputs)
        kept, constants, inline = _collect(nodes, set(inputs), outputs)
        read = {value for node in kept for value in node_reads(node)} | set(outputs)
        self.inputs = tuple(value for value in inputs if value in read)
        self._constants = constants
        view = ir.GraphView(
            [*self.inputs, *constants], self.outputs, nodes=kept, initializers=tuple(inline), name="piece",
            opset_imports=model.graph.opset_imports,
        )  # fmt: skip
        self._graph = view.clone()
        self._functions = tuple(model.functions.values())
        self._threads = threads
        self._arena = arena
        self._lent = _lent(kept, self.inputs, outputs)
        self._session: ort.InferenceSession | None = None
        self._fixed: dict[str, Any] = {}

    def run(self, feeds: Mapping[ir.Value, Array]) -> dict[ir.Value, Array]:
        """Run once.

        Raises:
            CalibrationError: ONNX Runtime refuses the piece or the data.
        """
        try:
            if self._session is None:
                self._open(feeds)
            assert self._session is not None
            fed = {_name(value): _ort_value(feeds[value]) for value in self.inputs}
            results = self._session.run_with_ort_values([_name(v) for v in self.outputs], fed | self._fixed)
        except SESSION_ERRORS as error:
            raise CalibrationError(
                f"{_name(self.outputs[-1])}: ONNX Runtime cannot run the model on this data: {str(error).splitlines()[0]}"
            ) from error
        return {
            value: _array(result).copy() if value in self._lent else _array(result)
            for value, result in zip(self.outputs, results, strict=True)
        }

    def _open(self, feeds: Mapping[ir.Value, Array]) -> None:
        self._fixed = {_name(value): _ort_value(array) for value, array in self._constants.items()}
        arrays = {_name(value): feeds[value] for value in self.inputs} | {
            _name(v): a for v, a in self._constants.items()
        }
        for value in self._graph.inputs:
            array = arrays[_name(value)]
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value.shape = ir.Shape([None] * array.ndim)
        for initializer in self._graph.initializers.values():
            tensor = initializer.const_value
            if tensor is not None and not isinstance(tensor, ir.Tensor):
                initializer.const_value = ir.Tensor(
                    np.array(tensor.numpy()), dtype=tensor.dtype, name=initializer.name
                )
        model = ir.Model(self._graph, ir_version=10, functions=self._functions)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = self._arena
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "0"
        )  # numpy and torch use the cores between runs
        proto: onnx.ModelProto = ir.to_proto(model)
        self._session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _lent(
    nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> frozenset[ir.Value]:
    """The outputs that no run computes: what is fed is handed on, what is made of constants alone made once. ONNX Runtime
    lends both, until the session ends or what was fed goes.
    """
    read, made = set(inputs), set[ir.Value]()
    for node in nodes:
        if not read.isdisjoint(node_reads(node)):
            read.update(node.outputs)
            made.update(node.outputs)
    return frozenset(value for value in outputs if value not in made)


def _collect(
    nodes: Sequence[ir.Node], given: set[ir.Value], outputs: Sequence[ir.Value]
) -> tuple[list[ir.Node], dict[ir.Value, Array], list[ir.Value]]:
    """The nodes that the outputs need, the large constants they read, and the small ones."""
    candidates = set(nodes)
    constants: dict[ir.Value, Array] = {}
    inline: dict[ir.Value, None] = {}
    needed: set[ir.Node] = set()
    stack, seen = list(outputs), set(given)
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        array = _large_constant(value)
        if array is not None:
            constants[value] = array
            continue
        if value.is_initializer():
            inline[value] = None
            continue
        node = value.producer()
        if node is None:
            continue
        if node not in candidates and not is_constant(value):
            raise CalibrationError(
                f"{_name(value)}: is needed before it is computed; the graph is not in topological order"
            )
        needed.add(node)
        stack.extend(node_reads(node))
    # Constant nodes and shape chains on constants may stand before the segment: keep graph order for all.
    ordered = [node for node in nodes if node in needed]
    earlier = sorted(needed - candidates, key=_position)
    return earlier + ordered, constants, list(inline)


def nodes_needed(
    nodes: Sequence[ir.Node], given: Collection[ir.Value], wanted: Sequence[ir.Value]
) -> set[ir.Node]:
    """The nodes that a piece with these candidates, inputs and outputs runs."""
    candidates, seen, needed = set(nodes), set(given), set()
    stack = list(wanted)
    while stack:
        value = stack.pop()
        node = value.producer()
        if value in seen or node is None or node not in candidates:
            continue
        seen.add(value)
        needed.add(node)
        stack.extend(node_reads(node))
    return needed


def is_tensor(value: ir.Value) -> bool:
    """Whether it is a tensor, as far as the model says: no sequence, no optional."""
    return value.type is None or isinstance(value.type, ir.TensorType)


def is_constant(value: ir.Value) -> bool:
    """Whether a value is the same on any data: an initializer, a Constant node's output, or nodes of a few types on these.

    A piece computes such values itself, wherever in the graph their nodes stand.
    """
    if value.is_initializer():
        return not value.is_graph_input()
    node = value.producer()
    if node is None:
        return False
    return node.op_type in _OF_CONSTANTS and all(s is None or is_constant(s) for s in node.inputs)


_OF_CONSTANTS = frozenset(
    {
        "Constant",
        "DequantizeLinear",
        "Identity",
        "Cast",
        "Transpose",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Gather",
        "Mul",
        "Sub",
        "Add",
        "BitShift",
        "BitwiseAnd",
        "Slice",
        "Split",
    }
)


def _position(node: ir.Node) -> int:
    assert node.graph is not None
    return next(index for index, other in enumerate(node.graph) if other is node)


def _large_constant(value: ir.Value) -> Array | None:
    """The numbers of a large constant operand, laid out as the reader wants them; None for anything else."""
    found = read_weight(value.producer())
    if found is not None:
        quantized, layout = found
        weight = quantized.dequantize()  # [N, K]
        return _as_type(np.ascontiguousarray(weight.T) if layout == "kn" else weight, value.dtype)
    view = constant_view(value)
    if view is None or int(np.prod(view.shape)) * 4 <= INLINE_BYTES:
        return None
    array = view.array()
    wanted = view.dtype.numpy()
    return np.ascontiguousarray(array if array.dtype == wanted else array.astype(wanted))


def _as_type(array: Array, dtype: ir.DataType | None) -> Array:
    return array if dtype is None else array.astype(dtype.numpy(), copy=False)


def _ort_value(array: Array) -> Any:
    if array.dtype.name == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), onnx.TensorProto.BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(
        array if array.flags.c_contiguous else np.ascontiguousarray(array)
    )


def _array(value: Any) -> Array:
    """The numbers of an OrtValue; ONNX Runtime's own way knows no bfloat16."""
    if value.element_type() != onnx.TensorProto.BFLOAT16:
        array: Array = value.numpy()
        return array
    shape = value.shape()
    raw = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape))
    return np.frombuffer(raw, ir.DataType.BFLOAT16.numpy()).reshape(shape)


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
