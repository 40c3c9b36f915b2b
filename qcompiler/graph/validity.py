"""What a model must have before anything is done with it. Structure only: no weight is read."""

import math
from pathlib import Path

import onnx
import onnx_ir as ir

from qcompiler.errors import InputError
from qcompiler.graph.edits import all_graphs
from qcompiler.graph.external_data import tensor_slots

_OLDEST_IR = 3  # the first with opset imports


def check_header(proto: onnx.ModelProto, path: Path) -> None:
    """Versions, and the parts of a model that onnx_ir would drop silently.

    Raises:
        InputError: a version we do not know, sparse or doubled initializers, training information.
    """
    if not _OLDEST_IR <= proto.ir_version <= onnx.IR_VERSION:
        raise InputError(
            f"{path}: IR version {proto.ir_version}; {_OLDEST_IR} to {onnx.IR_VERSION} are known: "
            "export the model again, or upgrade onnx if it is newer"
        )
    if not proto.opset_import:
        raise InputError(f"{path}: no opset imports (a truncated file?); export or download it again")
    newest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and not 1 <= opset.version <= newest:
            raise InputError(
                f"{path}: opset {opset.version}; 1 to {newest} are known: "
                "export the model with one of them, or upgrade onnx"
            )
    _check_text(proto, path)
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise InputError(f"{path}: sparse initializer {name!r} is not supported; export it dense")
    if proto.training_info:
        raise InputError(f"{path}: it holds training information; export it for inference")
    seen: set[str] = set()
    for tensor in proto.graph.initializer:
        if not tensor.name or tensor.name in seen:
            raise InputError(
                f"{path}: two initializers named {tensor.name!r} (or none); export the model again"
            )
        seen.add(tensor.name)


def _check_text(proto: onnx.ModelProto, path: Path) -> None:
    """Protobuf hands out text that is not UTF-8 as bytes, on which everything after it would stumble."""
    graph = proto.graph
    texts = [proto.producer_name, proto.producer_version, proto.domain, graph.name]
    for node in graph.node:
        texts += (node.name, node.op_type, node.domain, *node.input, *node.output)
    for named in (graph.initializer, graph.input, graph.output, graph.value_info):
        texts += (item.name for item in named)
    for text in texts:
        if isinstance(text, bytes):
            raise InputError(f"{path}: the name {text!r} is not UTF-8; export or download it again")


def check_tensors(model: ir.Model, path: Path) -> None:
    """Every tensor has a type, and one inside the protobuf has the bytes that its shape needs.

    Raises:
        InputError: one has not.
    """
    for slot in tensor_slots(model):
        tensor = slot.tensor
        if tensor.dtype == ir.DataType.UNDEFINED:
            raise InputError(f"{path}: {slot.where} has no type; export the model again")
        if isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.raw.HasField("raw_data"):
            held = len(tensor.raw.raw_data)
            if held != math.ceil(tensor.size * tensor.dtype.bitwidth / 8):
                raise InputError(
                    f"{path}: {slot.where}: {held} bytes do not fill {tensor.dtype.name}{tensor.shape}; "
                    "export the model again"
                )


def check_graphs(model: ir.Model, path: Path) -> None:
    """Values are defined before they are read (nodes out of order are sorted), and domains are imported.

    Raises:
        InputError: no outputs, an undefined value, a domain without an opset, a cycle.
    """
    if not model.graph.outputs:
        raise InputError(f"{path}: the graph has no outputs; export the model again")
    functions = {function.domain for function in model.functions.values()}
    for graph in all_graphs(model):
        known = {*model.opset_imports, *graph.opset_imports, *functions, "", "ai.onnx"}
        position = {}
        for index, node in enumerate(graph):
            position[node] = index
            if node.domain not in known:
                raise InputError(
                    f"{path}: node {node.name} ({node.op_type}): no opset import for domain {node.domain!r}; "
                    "export the model again"
                )
        ordered = True
        for node, index in position.items():
            for value in node.inputs:
                if value is None:
                    continue
                producer = value.producer()
                if producer is None:
                    if not value.is_graph_input() and not value.is_initializer():
                        raise InputError(
                            f"{path}: node {node.name} ({node.op_type}) reads {value.name!r}, "
                            "which nothing defines; export the model again"
                        )
                elif position.get(producer, -1) >= index:
                    ordered = False
        for value in graph.outputs:
            if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
                raise InputError(
                    f"{path}: nothing computes the output {value.name!r}; export the model again"
                )
        if not ordered:
            _sort(graph, path)
    if "" not in model.opset_imports and any(node.domain == "" for node in model.graph):
        raise InputError(f"{path}: no opset import for the default domain; export the model again")


def _sort(graph: ir.Graph, path: Path) -> None:
    try:
        graph.sort()
    except ValueError as error:
        raise InputError(f"{path}: the graph {graph.name!r} has a cycle; export the model again") from error
