"""A hash of what a model computes: its nodes, their attributes and names, and the bytes of its weights; no descriptions, no places.

Two files of one model have the same hash, wherever their data lie and whatever an exporter noted beside the nodes.
"""

import hashlib

import onnx
import onnx_ir as ir

from qcompiler.graph.mapped_tensor import MappedTensor


def model_fingerprint(model: ir.Model) -> str:
    """SHA-256 in hexadecimal of a model without functions; reads every weight once."""
    digest = hashlib.sha256()
    for value in (*model.graph.inputs, *model.graph.outputs):
        digest.update(f"{value.name} {value.dtype} {value.shape}\n".encode())
    for node in model.graph:
        proto = ir.to_proto(node)
        _forget_notes(proto)
        digest.update(proto.SerializeToString(deterministic=True))
    for name, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None:
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            # A view of the file, not a copy of it.
            digest.update(tensor.packed().data if isinstance(tensor, MappedTensor) else tensor.tobytes())
    return digest.hexdigest()


def _forget_notes(node: onnx.NodeProto) -> None:
    """Leaves out what exporters note for people: module paths, places in source files."""
    node.ClearField("metadata_props")
    node.ClearField("doc_string")
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            body.ClearField("value_info")
            body.ClearField("doc_string")
            for inner in body.node:
                _forget_notes(inner)
