"""An inspection on the terminal: products flat, folded by block or as a tree of modules, then what all of it takes."""

import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Group, RenderableType
from rich.text import Text

from qcompiler.errors import InputError
from qcompiler.report.fitted_table import LEAST_NAME, Column, FittedTable, Row
from qcompiler.report.inspect_model import InspectedProduct, Inspection
from qcompiler.report.session_lines import session_lines
from qcompiler.report.sizes import counted, format_bytes, format_shape

OPERATORS = 8  # types that are counted by name in the last line
MANY = 60  # products; more are folded by block unless asked otherwise
_CPU = "CPUExecutionProvider"
LISTED = 3  # differing words in one cell of a folded line

View = Literal["flat", "folded", "tree"]


def matching(found: Inspection, pattern: re.Pattern[str]) -> list[InspectedProduct]:
    """Products of which a name or the block matches.

    Raises:
        InputError: none does.
    """
    products = [
        product
        for product in found.products
        if any(map(pattern.search, (product.name, product.block, *product.nodes)))
    ]
    if not products:
        raise InputError(
            f"{found.model}: no product or block matches {pattern.pattern!r}; names are as qcompile inspect --flat shows them"
        )
    return products


def inspection_table(
    found: Inspection, shown: Sequence[InspectedProduct] | None = None, view: View | None = None
) -> RenderableType:
    """A table and the totals.

    Args:
        shown: of its products; None for all.
        view: None folds what has many weights.
    """
    products = found.products if shown is None else shown
    weights = sum(bool(product.dtype) for product in products)
    view = view or ("folded" if weights > MANY else "flat")
    lines = {"flat": _flat, "folded": _folded, "tree": _tree}[view](products)
    below = _totals(found)
    if shown is not None:
        below.insert(0, f"shown are {len(shown)} of {counted(len(found.products), 'product')}")
    if view == "folded":
        below.insert(
            0, "folded by block: --flat shows each product, --tree their modules, --filter REGEX some of them"
        )
    if found.session is not None:
        below += session_lines(found.session)
    return Group(_table(lines, view), "", *map(Text, below))


@dataclass(frozen=True)
class _Line:
    """One row: what it is called, and the products that it stands for; ``inner`` rows of a tree say nothing but sizes."""

    name: str
    products: list[InspectedProduct] = field(default_factory=list)
    inner: bool = False


def _flat(products: Sequence[InspectedProduct]) -> list[_Line]:
    """In graph order; those without a weight are counted in one line for each reason."""
    return _grouped(
        products, lambda product: id(product) if product.dtype else (product.role, product.op, product.reason)
    )


def _folded(products: Sequence[InspectedProduct]) -> list[_Line]:
    """A line for each block and kind: what has role, operator, form and reason in common."""
    return _grouped(
        products,
        lambda product: (
            product.block if product.dtype else None, product.role, product.op, product.label,
            product.activations is None, product.algorithm, product.reason, _runs(product),
        ),
    )  # fmt: skip


def _grouped(
    products: Sequence[InspectedProduct], likeness: Callable[[InspectedProduct], Hashable]
) -> list[_Line]:
    """A line for each group of products that are alike, those without a weight last."""
    groups: dict[Hashable, list[InspectedProduct]] = {}
    for product in products:
        groups.setdefault(likeness(product), []).append(product)
    lines = []
    for members in sorted(groups.values(), key=lambda group: not group[0].dtype):
        first, more = members[0], len(members) - 1
        if not more:
            name = first.name
        else:
            name = (first.block or "outside blocks") if first.dtype else f"{first.name} and {more} more"
        lines.append(_Line(name, members))
    return lines


@dataclass
class _Module:
    """A module of a tree."""

    inside: "dict[str, _Module]" = field(default_factory=dict)
    products: list[InspectedProduct] = field(default_factory=list)

    def all(self) -> list[InspectedProduct]:
        """Its own and those of the modules in it."""
        return self.products + [product for module in self.inside.values() for product in module.all()]


def _tree(products: Sequence[InspectedProduct]) -> list[_Line]:
    """Blocks with their products inside, by the parts of their names."""
    root = _Module()
    for product in products:
        module = root
        for part in _path(product):
            module = module.inside.setdefault(part, _Module())
        module.products.append(product)
    lines: list[_Line] = []
    _grow(root, 0, lines)
    return lines


def _path(product: InspectedProduct) -> list[str]:
    parts = product.name.strip("/").replace("/", ".").split(".")
    block = product.block.split(".") if product.block else []
    if parts[: len(block)] == block:
        return [product.block, *parts[len(block) :]] if block else parts
    return [product.block, product.name] if block else parts


def _grow(module: _Module, depth: int, lines: list[_Line]) -> None:
    for name, child in module.inside.items():
        while len(child.inside) == 1 and not child.products:  # one line for what holds one thing
            part, child = next(iter(child.inside.items()))
            name = f"{name}.{part}"
        held = child.all()
        if child.inside:
            lines.append(_Line("  " * depth + name, held, inner=True))
            lines.extend(_Line("  " * (depth + 1) + "itself", [own]) for own in child.products)
            _grow(child, depth + 1, lines)
        else:
            lines.extend(_Line("  " * depth + name, [own]) for own in child.products)


def _table(lines: Sequence[_Line], view: View) -> FittedTable:
    products = [product for line in lines for product in line.products]
    runs = any(product.running is not None for product in products)
    columns: list[tuple[Column, Callable[[_Line], str]]] = [
        (Column("name", 0, "name", LEAST_NAME), lambda line: line.name),
        (Column("role", 9, "words", 10), lambda line: _words(product.role for product in line.products)),
        (Column("runs as", 2, "words", 16), lambda line: _words(map(_runs, line.products)))
        if runs
        else (Column("op", 8, "words", 11), lambda line: _words(product.op for product in line.products)),
    ]
    if view == "folded":
        columns += [
            (Column("weights", 6, right=True), _count),
            (Column("numbers", 10, right=True), _numbers),
        ]
    else:
        columns.append((Column("N x K", 6, right=True), _shapes))
    columns.append(
        (Column("stored as", 0, "words", 14), lambda line: _words(product.label for product in line.products))
    )
    if any(product.activations for product in products):
        columns.append((Column("activations", 5, "words", 14), _activations))
    columns += [
        (Column("bytes", 3, right=True), lambda line: _bytes(line.products)),
        (Column("share", 7, right=True), _share),
    ]
    if any(product.sqnr_db is not None for product in products):
        columns.append((Column("dB" if view == "flat" else "worst dB", 1, right=True), _sqnr))
    if runs:
        columns.append((Column("time", 1, right=True), _time))
    columns.append((Column("why", 4, "words", 14, below=True), _reasons))
    return FittedTable(
        [column for column, _ in columns],
        [
            Row(
                [cell(line) for _, cell in columns],
                "bold" if line.inner else "",
                tell=not line.inner and not all(product.algorithm for product in line.products),
            )
            for line in lines
        ],
    )


def _shapes(line: _Line) -> str:
    return "" if line.inner else _words(format_shape(product.shape) for product in line.products)


def _reasons(line: _Line) -> str:
    return "" if line.inner else _words(map(_why, line.products))


def _words(words: Iterable[str]) -> str:
    """What differs, once each and in order; how many more there are."""
    distinct = [word for word in dict.fromkeys(words) if word]
    more = f" and {len(distinct) - LISTED} more" if len(distinct) > LISTED else ""
    return ", ".join(distinct[:LISTED]) + more


def _count(line: _Line) -> str:
    weights = sum(bool(product.dtype) for product in line.products)
    return str(weights) if weights else ""


def _numbers(line: _Line) -> str:
    total = sum(math.prod(product.shape) for product in line.products if product.dtype)
    return f"{total / 1e6:.3g} M" if total >= 1e6 else f"{total:,}".replace(",", " ") if total else ""


def _activations(line: _Line) -> str:
    labels = [product.activations.label for product in line.products if product.activations is not None]
    if len(set(labels)) < 2:
        return labels[0] if labels else ""
    return _words(product.activations.dtype for product in line.products if product.activations is not None)


def _bytes(products: Sequence[InspectedProduct]) -> str:
    total = sum(product.bytes for product in products)
    return format_bytes(total) if total else ""


def _share(line: _Line) -> str:
    share = sum(product.share for product in line.products)
    return f"{100 * share:.1f} %" if share else ""


def _sqnr(line: _Line) -> str:
    known = [product.sqnr_db for product in line.products if product.sqnr_db is not None]
    return f"{min(known):.1f}" if known else ""


def _why(product: InspectedProduct) -> str:
    tied = "tied" if product.is_tied and product.dtype else ""
    island = product.running.island if product.running is not None else ""
    return " / ".join(part for part in (island, product.algorithm, product.reason, tied) if part)


def _runs(product: InspectedProduct) -> str:
    running = product.running
    if running is None:
        return ""
    elsewhere = [provider for provider in running.providers if provider != _CPU]
    kernels = "/".join(running.kernels) or "fused into another node"
    return kernels + (f" on {'/'.join(elsewhere)}" if elsewhere else "")


def _time(line: _Line) -> str:
    # Products that one node runs have its time each.
    nodes = {tuple(p.running.nodes): p.running.share for p in line.products if p.running is not None}
    share = sum(nodes.values())
    return f"{100 * share:.1f} %"


def _totals(found: Inspection) -> list[str]:
    weights = [product for product in found.products if product.dtype]
    blocks = len({product.block for product in found.products} - {""})
    tied = sum(product.is_tied for product in weights)
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found.opsets.items())
    bits = f" at {found.bits_per_weight:.2f} bits per weight" if found.bits_per_weight is not None else ""
    rest = found.tensor_bytes - found.quantized_bytes - found.float_bytes
    most = list(found.operators.items())[:OPERATORS]
    others = len(found.operators) - len(most)
    return [
        f"{found.model}: {format_bytes(found.file_bytes)}, IR {found.ir_version}, opsets {opsets}"
        + (f", by {found.producer}" if found.producer else ""),
        f"{counted(len(weights), 'weight')}{f' in {blocks} blocks' if blocks else ''}: "
        f"{found.quantized} quantized ({format_bytes(found.quantized_bytes)}{bits}), "
        f"{len(weights) - found.quantized} float ({format_bytes(found.float_bytes)}); "
        + (f"{tied} tied; " if tied else "")
        + f"other tensors {format_bytes(rest)}",
        f"inputs {'; '.join(found.inputs)}",
        f"outputs {'; '.join(found.outputs)}",
        f"{found.nodes} nodes: "
        + ", ".join(f"{count} {op}" for op, count in most)
        + (f" and {others} other types" if others > 0 else ""),
    ]
