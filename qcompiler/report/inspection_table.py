"""An inspection on the terminal: one line a product, then what all of it takes."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcompiler.report.folded import folded
from qcompiler.report.inspect_model import InspectedProduct, Inspection
from qcompiler.report.sizes import format_bytes, format_shape

OPERATORS = 8  # types that are counted by name in the last line


def inspection_table(found: Inspection) -> RenderableType:
    """Products in graph order; those without a weight are counted in one line for each reason."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "role", "op"):
        table.add_column(column, overflow="fold")
    table.add_column("N x K", justify="right", no_wrap=True)
    table.add_column("stored as", no_wrap=True)
    rounds = any(product.activations for product in found.products)
    if rounds:
        table.add_column("activations", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for product in folded(found.products, _likeness):
        why = " / ".join(part for part in (product.algorithm, product.reason) if part)
        size = format_bytes(product.bytes) if product.bytes else ""
        share = f"{100 * product.share:.1f} %" if product.bytes else ""
        cells = (
            product.name, product.role, product.op, format_shape(product.shape), product.label,
            *([product.activations.label if product.activations else ""] if rounds else []), size, share, why,
        )  # fmt: skip
        table.add_row(*map(escape, cells))
    return Group(table, "", *map(Text, _totals(found)))


def _likeness(product: InspectedProduct) -> tuple[str, ...] | None:
    """Role, operator and reason of a product without a weight."""
    return None if product.dtype else (product.role, product.op, product.reason)


def _totals(found: Inspection) -> list[str]:
    weights = [product for product in found.products if product.dtype]
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found.opsets.items())
    bits = f" at {found.bits_per_weight:.2f} bits per weight" if found.bits_per_weight is not None else ""
    rest = found.tensor_bytes - found.quantized_bytes - found.float_bytes
    most = list(found.operators.items())[:OPERATORS]
    others = len(found.operators) - len(most)
    return [
        f"{found.model}: {format_bytes(found.file_bytes)}, IR {found.ir_version}, opsets {opsets}"
        + (f", by {found.producer}" if found.producer else ""),
        f"{len(weights)} weights: {found.quantized} quantized ({format_bytes(found.quantized_bytes)}{bits}), "
        f"{len(weights) - found.quantized} float ({format_bytes(found.float_bytes)}); "
        f"other tensors {format_bytes(rest)}",
        f"inputs {'; '.join(found.inputs)}",
        f"outputs {'; '.join(found.outputs)}",
        f"{found.nodes} nodes: "
        + ", ".join(f"{count} {op}" for op, count in most)
        + (f" and {others} other types" if others > 0 else ""),
    ]
