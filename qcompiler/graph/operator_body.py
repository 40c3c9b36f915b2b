"""Operators of our domain that a model carries with a body of ONNX nodes, which runs where our library is not."""

import onnx.parser
import onnx_ir as ir

OUR_DOMAIN = "ai.qcompiler"
VERSION = 1


def provide_body(model: ir.Model, op: str, body: str) -> None:
    """Gives the model the body of ``op``, at the model's opset, and the import of its domain, where it has none.

    Args:
        body: the function as ONNX text, valid from opset 21 on.
    """
    model.graph.opset_imports.setdefault(OUR_DOMAIN, VERSION)
    opset = model.graph.opset_imports[""]
    known = model.functions.get((OUR_DOMAIN, op, ""))
    if known is not None and known.opset_imports.get("") == opset:
        return
    function = ir.serde.deserialize_function(onnx.parser.parse_function(body))
    function.opset_imports[""] = opset  # ONNX Runtime inlines one of the same versions
    model.functions[function.identifier()] = function


def is_ours(function: ir.Function) -> bool:
    """Whether it is the body of an operator of our domain, which stays a node."""
    return function.domain == OUR_DOMAIN
