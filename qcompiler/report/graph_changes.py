"""What differs between the graphs of two models: nodes, products, initializers, inputs, outputs and opsets.

Nodes are matched by the names of what they yield. A product is matched by its aligned value, so that one which became another operator
(or several around an integer product) is replaced, and not removed here and added there.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompiler.graph.blocks import blocks
from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.report.alignment import Alignment, Product, float_names, products_of
from qcompiler.report.quantized_products import StoredWeight


@dataclass(frozen=True)
class Replaced:
    """A product that is another kind of node, or whose weight is stored otherwise.

    Attributes:
        name: of its weight, or of the node.
        before, after: operators; stored: how its weight is stored after, such as "uint4 g64"; empty for a float one.
    """

    name: str
    block: str
    before: str
    after: str
    stored: str


@dataclass(frozen=True)
class NodeChange:
    """A node that one model alone has, or of which something else changed."""

    name: str
    op: str
    block: str


@dataclass(frozen=True)
class BlockChanges:
    """Everything that changed in one block.

    Attributes:
        replaced: "MatMul -> MatMulNBits" and how often.
        added, removed: operators and how often.
    """

    block: str
    replaced: dict[str, int]
    added: dict[str, int]
    removed: dict[str, int]


@dataclass(frozen=True)
class GraphChanges:
    """What differs.

    Attributes:
        signature: inputs, outputs, opsets and IR version, one line each.
        replaced: products; added, removed: other nodes; changed: nodes of which attributes alone changed.
        rewired: how many nodes read other values than before.
        operators: (before, after) counts of the operators whose counts differ.
        initializers_added, initializers_removed: how many; initializers_changed: names of those with another type, shape or number.
        blocks: in the reference's order.
    """

    signature: list[str]
    replaced: list[Replaced]
    added: list[NodeChange]
    removed: list[NodeChange]
    changed: list[NodeChange]
    rewired: int
    operators: dict[str, tuple[int, int]]
    initializers_added: int
    initializers_removed: int
    initializers_changed: list[str]
    blocks: list[BlockChanges]

    @property
    def none(self) -> bool:
        """Both graphs are the same, weights too."""
        lists = (
            self.signature,
            self.replaced,
            self.added,
            self.removed,
            self.changed,
            self.initializers_changed,
        )
        return not any(lists) and not (self.rewired or self.initializers_added or self.initializers_removed)


def graph_changes(reference: ir.Model, other: ir.Model, alignment: Alignment) -> GraphChanges:
    """Compare two normalized models; numbers of initializers that both have by name are read and compared."""
    before = {_name(node.outputs[0]): node for node in reference.graph if node.outputs}
    after = {_known_name(node, before): node for node in other.graph if node.outputs}
    places = blocks(reference)
    their_places = _places_in(other, before, places)
    replaced = list(_replaced(reference, other, alignment, places))
    old, new = {node for _, node, _ in replaced}, {node for _, _, node in replaced}
    added: list[NodeChange] = []
    removed: list[NodeChange] = []
    changed: list[NodeChange] = []
    rewired = 0
    for name, node in before.items():
        match = after.get(name)
        if match is None or _op(match) != _op(node):
            if node not in old:
                removed.append(_change(node, places))
            if match is not None and match not in new:
                added.append(_change(match, their_places))
        elif node not in old:
            if _attributes(node) != _attributes(match):
                changed.append(_change(node, places))
            rewired += [_name(v) for v in node.inputs] != [_name(v) for v in match.inputs]
    added += [
        _change(node, their_places) for name, node in after.items() if name not in before and node not in new
    ]
    names, other_names = (set(model.graph.initializers) for model in (reference, other))
    counts, other_counts = (Counter(map(_op, model.graph)) for model in (reference, other))
    products = [entry for entry, _, _ in replaced]
    return GraphChanges(
        _signature(reference, other),
        products,
        added,
        removed,
        changed,
        rewired,
        {op: (counts[op], other_counts[op]) for op in counts | other_counts if counts[op] != other_counts[op]},
        len(other_names - names),
        len(names - other_names),
        sorted(name for name in names & other_names if not _equal(reference, other, name)),
        _by_block(products, added, removed, places),
    )  # fmt: skip


def stored_label(stored: StoredWeight | None) -> str:
    """``uint4 g64 asym``; empty for a float weight."""
    if stored is None:
        return ""
    width = f"g{stored.group_size}" if stored.group_size is not None else stored.granularity
    parts = (
        stored.dtype,
        width,
        "" if stored.symmetric else "asym",
        f"+ {stored.beside}" if stored.beside else "",
    )
    return " ".join(part for part in parts if part)


def _replaced(
    reference: ir.Model, other: ir.Model, alignment: Alignment, places: Mapping[ir.Node, str]
) -> Iterator[tuple[Replaced, ir.Node, ir.Node]]:
    """Products that became others, with both nodes."""
    theirs = list(products_of(reference))
    ours = {product.node: product for product in products_of(other)}
    values = {output.name: output for node in other.graph for output in node.outputs}
    taps = {value.name: value.other for value in alignment.layers}
    for product in theirs:
        tap = taps.get(alignment.shown.get(product.node.name or "", ""))
        match = None if tap is None else _product_behind(values.get(tap.value), ours, product.name)
        if match is None:
            continue
        labels = stored_label(product.stored), stored_label(match.stored)
        if _op(product.node) != _op(match.node) or labels[0] != labels[1]:
            entry = Replaced(
                product.name, places.get(product.node, ""), _op(product.node), _op(match.node), labels[1]
            )
            yield entry, product.node, match.node


_FURTHEST = 8  # nodes between a product and the value that stands for it: a scale, a bias, two roundings


def _product_behind(value: ir.Value | None, products: Mapping[ir.Node, Product], name: str) -> Product | None:
    """The nearest product that a value is computed from; of two at one distance the one of that name."""
    level = [] if value is None else [value]
    for _ in range(_FURTHEST):
        nodes = [node for each in level if (node := each.producer()) is not None]
        found = [products[node] for node in nodes if node in products]
        if found:
            return next((product for product in found if product.name == name), found[0])
        level = list(dict.fromkeys(read for node in nodes for read in node.inputs if read is not None))
    return None


def _places_in(
    other: ir.Model, before: Mapping[str, ir.Node], places: Mapping[ir.Node, str]
) -> dict[ir.Node, str]:
    """The reference's block of every node: of what it yields, or of what is made from that next; quantizers drop what names blocks.

    Its own block where the reference has nothing of that name behind it.
    """
    found = blocks(other)
    behind: dict[ir.Node, str] = {}
    for node in reversed(list(other.graph)):
        made = next((before[name] for output in node.outputs if (name := _name(output)) in before), None)
        readers = [reader for output in node.outputs for reader in output.consumers() if reader in behind]
        if made is not None:
            behind[node] = places.get(made, "")
        elif readers:
            behind[node] = behind[readers[0]]
    return found | behind


def _known_name(node: ir.Node, names: Collection[str]) -> str:
    """What a node yields; without what marks codes, where the reference knows that as floats."""
    name = _name(node.outputs[0])
    floats = [known for known in float_names(name) if known in names]
    rounds = node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
    return floats[0] if floats and name not in names and not rounds else name


def _change(node: ir.Node, places: Mapping[ir.Node, str]) -> NodeChange:
    return NodeChange(node.name or _name(node.outputs[0]), _op(node), places.get(node, ""))


def _op(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def _attributes(node: ir.Node) -> list[bytes]:
    """As bytes, in the order of their names; bodies of control flow too."""
    known = sorted(node.attributes.values(), key=lambda attribute: attribute.name)
    return [ir.to_proto(attribute).SerializeToString(deterministic=True) for attribute in known]


def _signature(reference: ir.Model, other: ir.Model) -> list[str]:
    lines = []
    for what, theirs, ours in (
        ("input", reference.graph.inputs, other.graph.inputs),
        ("output", reference.graph.outputs, other.graph.outputs),
    ):
        before, after = ({_name(value): _type(value) for value in values} for values in (theirs, ours))
        lines += [f"{what} {name} ({kind}) is gone" for name, kind in before.items() if name not in after]
        lines += [f"{what} {name} ({kind}) is new" for name, kind in after.items() if name not in before]
        lines += [
            f"{what} {name}: {kind} -> {after[name]}"
            for name, kind in before.items()
            if name in after and after[name] != kind
        ]
    opsets, other_opsets = reference.opset_imports, other.opset_imports
    for domain in dict.fromkeys((*opsets, *other_opsets)):
        versions = opsets.get(domain), other_opsets.get(domain)
        if versions[0] != versions[1]:
            first, second = ("none" if version is None else str(version) for version in versions)
            lines.append(f"opset {domain or 'ai.onnx'}: {first} -> {second}")
    if reference.ir_version != other.ir_version:
        lines.append(f"IR version: {reference.ir_version} -> {other.ir_version}")
    return lines


def _type(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else str(value.dtype.name).lower()
    return f"{dtype} {'?' if value.shape is None else value.shape}"


_PART = 1 << 24  # bytes compared at a time


def _equal(reference: ir.Model, other: ir.Model, name: str) -> bool:
    """Whether an initializer of both is the same tensor, number for number."""
    theirs, ours = (model.graph.initializers[name].const_value for model in (reference, other))
    if theirs is None or ours is None:
        return theirs is ours
    if theirs.dtype != ours.dtype or list(theirs.shape.numpy()) != list(ours.shape.numpy()):
        return False
    if isinstance(theirs, MappedTensor) and isinstance(ours, MappedTensor):
        if (theirs.file.path, theirs.offset) == (ours.file.path, ours.offset):
            return True
        first, second = theirs.packed(), ours.packed()
        return all(
            np.array_equal(first[at : at + _PART], second[at : at + _PART])
            for at in range(0, len(first), _PART)
        )
    return theirs.tobytes() == ours.tobytes()


def _by_block(
    replaced: list[Replaced],
    added: list[NodeChange],
    removed: list[NodeChange],
    places: Mapping[ir.Node, str],
) -> list[BlockChanges]:
    order = list(dict.fromkeys([*places.values(), *(node.block for node in added)]))
    found = []
    for block in order:
        changes = BlockChanges(
            block,
            dict(Counter(_arrow(entry) for entry in replaced if entry.block == block)),
            dict(Counter(node.op for node in added if node.block == block)),
            dict(Counter(node.op for node in removed if node.block == block)),
        )
        if changes.replaced or changes.added or changes.removed:
            found.append(changes)
    return found


def _arrow(entry: Replaced) -> str:
    """``MatMul -> com.microsoft::MatMulNBits (uint4 g64)``."""
    after = entry.after if entry.after != entry.before else ""
    stored = f"({entry.stored})" if entry.stored else ""
    return f"{entry.before} -> {' '.join(part for part in (after, stored) if part)}"
