"""Names of products, for people and for the rules of recipes."""

import onnx_ir as ir

from qcompiler.graph.module_path import exporter_scope
from qcompiler.graph.weights import Weight


def product_names(node: ir.Node, source: ir.Value) -> tuple[str, tuple[str, ...]]:
    """The best name for people, and every other name that a rule may use."""
    candidates = [
        exporter_scope(node),
        None if source.name is None or uninformative(source.name) else source.name,
        node.name,
        source.name,
        node.outputs[0].name,
    ]
    names = [name for name in candidates if name]
    return (names[0] if names else node.op_type), tuple(dict.fromkeys(names[1:]))


def uninformative(name: str) -> bool:
    """Whether an exporter made the name up."""
    return name.startswith(("val_", "onnx::", "_", "const")) or name.isdigit()


def make_names_unique(weights: list[Weight]) -> None:
    """Gives each weight whose name is taken the first of its aliases that is free, or a number."""
    taken: set[str] = set()
    for weight in weights:
        if weight.name in taken:
            fallback = next((alias for alias in weight.aliases if alias not in taken), None)
            number = 1
            while fallback is None or fallback in taken:
                number += 1
                fallback = f"{weight.name}#{number}"
            weight.name = fallback
        taken.add(weight.name)
