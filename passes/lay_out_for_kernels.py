"""Write weights in the order that our kernels read them, so that a session uses the mapped file's bytes where they are.

*Given* nodes of our products, ai.qcompiler::DynamicQuantMatMul and GatherNBits whose weights lie row after row.
*Result* the same nodes with ``layout`` = 1, on the same numbers in lines (``quant.kernel_lines``): codes uint8 [blocks, groups, lines, 64],
scales float32 [blocks, groups, 16], zero points uint8 [blocks, groups, 16]. Scales and zero points take more bytes than before.

A weight is laid out for all nodes that read it or for none, and so are the weights of one node.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph import own_dynamic_matmul, own_gather_nbits, own_matmul_codebook
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import INPUTS_OF_EACH, LAYOUT, LINES, PRODUCTS, columns_attribute
from qcompiler.graph.product_names import product_names
from qcompiler.graph.streamed_tensor import Bytes, StreamedTensor
from qcompiler.passes.reasons import Reasons
from qcompiler.quant import packing, three_bits
from qcompiler.quant.kernel_lines import ROWS, Lines, lay_out_cells, lay_out_codes

CODES = 1
"""The input with a node's first codes; scales and zero points follow."""
_CHUNK = 1 << 22  # codes turned at a time


@dataclass(frozen=True, eq=False)
class _Weight:
    """What a node reads as one weight."""

    codes: ir.Value
    scales: ir.Value | None
    zero_points: ir.Value | None
    sizes: Lines

    @property
    def parts(self) -> tuple[object, ...]:
        """Weights on the same codes are one if these are the same."""
        return self.codes, self.scales, self.zero_points, self.sizes

    @property
    def groups(self) -> int:
        """Scales of a row, as stored."""
        return -(-self.sizes.k // self.sizes.block_size)


class LayOutForKernels(ir.passes.InPlacePass):
    """The pass.

    Attributes:
        saved: bytes less that a weight takes than before, mostly a negative number, by its name in reports.
        left: a line for each reason for which weights are packed when a session is created all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.saved: dict[str, int] = {}
        self.left: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes, left = [], Reasons()
        for node in RecursiveGraphIterator(model.graph):
            if node.domain == OUR_DOMAIN and node.op_type == own_matmul_codebook.OP:
                left.add(node, "its codes stand for the numbers of a table")
            elif _reads_rows(node):
                nodes.append(node)
        read = {node: list(_weights(node)) for node in nodes}
        stopped = _stopped(read)
        laid_out: dict[ir.Value, _Weight] = {}
        for node, weights in read.items():
            if node in stopped:
                left.add(node, stopped[node])
                continue
            node.attributes.add(ir.AttrInt64(LAYOUT, LINES))
            for weight in weights:
                if weight.codes not in laid_out:
                    laid_out[weight.codes] = weight
                    self._lay_out(node, weight)
        self.left += left.lines("it is packed when a session is created")
        return ir.passes.PassResult(model, modified=bool(laid_out))

    def _lay_out(self, node: ir.Node, weight: _Weight) -> None:
        name = product_names(node, weight.codes)[0].removesuffix(".weight").removesuffix(".quantized")
        before = _nbytes(weight)
        sizes, codes = weight.sizes, weight.codes
        assert weight.scales is not None
        _replace(codes, partial(_code_pieces, _tensor(codes), sizes), ir.DataType.UINT8, sizes.codes)
        scales = partial(_scale_pieces, _tensor(weight.scales), weight.groups, sizes)
        _replace(weight.scales, scales, ir.DataType.FLOAT, sizes.cells)
        if weight.zero_points is not None:
            points = partial(_point_pieces, _tensor(weight.zero_points), weight.groups, sizes)
            _replace(weight.zero_points, points, ir.DataType.UINT8, sizes.cells)
        self.saved[name] = before - _nbytes(weight)


def _reads_rows(node: ir.Node) -> bool:
    if node.domain != OUR_DOMAIN or node.attributes.get_int(LAYOUT, 0) == LINES:
        return False
    return node.op_type in (*PRODUCTS, own_dynamic_matmul.OP, own_gather_nbits.OP)


def _weights(node: ir.Node) -> Iterator[_Weight]:
    k, bits, block_size = (node.attributes.get_int(name) for name in ("K", "bits", "block_size"))
    for product in range(PRODUCTS.get(node.op_type, 1)):
        n = node.attributes.get_int(columns_attribute(node.op_type, product))
        codes, scales, zero_points = (
            node.inputs[at] if at < len(node.inputs) else None
            for at in range(CODES + product * INPUTS_OF_EACH, CODES + product * INPUTS_OF_EACH + 3)
        )
        assert codes is not None
        yield _Weight(codes, scales, zero_points, Lines(n, k, bits, block_size))


def _stopped(read: dict[ir.Node, list[_Weight]]) -> dict[ir.Node, str]:
    """Nodes whose weights stay as they are, with the reason."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    known: dict[ir.Value, _Weight] = {}
    beside: dict[ir.Value | None, ir.Value] = {}  # codes for scales and zero points
    for node, weights in read.items():
        for weight in weights:
            readers.setdefault(weight.codes, []).append(node)
            known.setdefault(weight.codes, weight)
            for part in (weight.scales, weight.zero_points):
                beside.setdefault(part, weight.codes)
    stopped: dict[ir.Node, str] = {}
    for node, weights in read.items():
        for weight in weights:
            reason = _obstacle(node, weight, readers[weight.codes])
            if reason is None and weight.parts != known[weight.codes].parts:
                reason = "its weight is read in other blocks too"
            own = all(
                part is None or beside[part] is weight.codes for part in (weight.scales, weight.zero_points)
            )
            if reason is None and not own:  # of two weights of one node; of two nodes each has an obstacle
                reason = "its scales or zero points are those of several weights"
            if reason is not None:
                stopped.setdefault(node, reason)
    waiting = list(stopped)
    while waiting:
        for weight in read[waiting.pop()]:
            for other in readers[weight.codes]:
                if other not in stopped:
                    stopped[other] = "a node that stays as it is reads its weight too"
                    waiting.append(other)
    return stopped


def _obstacle(node: ir.Node, weight: _Weight, readers: list[ir.Node]) -> str | None:
    """Why a weight cannot be laid out, or None."""
    for value in (weight.codes, weight.scales, weight.zero_points):
        if value is None:
            continue
        if not value.is_initializer() or value.const_value is None or value.is_graph_input():
            return "its weight is computed"
        if value.is_graph_output() or any(user not in readers for user, _ in value.uses()):
            return "its weight is read by another node too"
    if weight.scales is None:
        return "it has no scales"
    float16 = _tensor(weight.scales).dtype == ir.DataType.FLOAT16
    if float16 and own_gather_nbits.OP in (reader.op_type for reader in (node, *readers)):
        return "its rows are gathered in float16"
    return None


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _nbytes(weight: _Weight) -> int:
    parts = (weight.codes, weight.scales, weight.zero_points)
    return sum(int(_tensor(part).nbytes) for part in parts if part is not None)


def _strips(sizes: Lines, width: int) -> Iterator[tuple[slice, Lines]]:
    """Whole blocks of rows of some ``width`` numbers each, and their sizes."""
    step = max(1, _CHUNK // max(1, width) // ROWS) * ROWS
    for first in range(0, sizes.n, step):
        rows = min(step, sizes.n - first)
        yield slice(first, first + rows), Lines(rows, sizes.k, sizes.bits, sizes.block_size)


def _bytes_of(array: npt.NDArray[Any]) -> Bytes:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8)


def _code_pieces(tensor: ir.TensorProtocol, sizes: Lines) -> Iterator[Bytes]:
    stored = tensor.numpy().reshape(sizes.n, -(-sizes.k // sizes.block_size), -1)
    for rows, strip in _strips(sizes, sizes.k):
        yield _bytes_of(lay_out_codes(_codes(stored[rows], strip), strip))


def _codes(stored: Bytes, sizes: Lines) -> Bytes:
    if sizes.bits != 3:
        return packing.unpack_matmul_nbits(stored, sizes.k, sizes.bits)
    return packing.unpack_matmul_nbits(three_bits.lengthen(stored), sizes.k, 4) >> np.uint8(1)


def _scale_pieces(tensor: ir.TensorProtocol, groups: int, sizes: Lines) -> Iterator[Bytes]:
    stored = tensor.numpy().reshape(sizes.n, groups)
    for rows, strip in _strips(sizes, groups):
        yield _bytes_of(lay_out_cells(stored[rows].astype(np.float32), strip))


def _point_pieces(tensor: ir.TensorProtocol, groups: int, sizes: Lines) -> Iterator[Bytes]:
    stored = tensor.numpy().reshape(sizes.n, -1)
    held = 4 if sizes.bits == 3 else sizes.bits  # 3 bits: twice as large
    for rows, strip in _strips(sizes, groups):
        points = packing.unpack_zero_points(stored[rows], groups, held) >> np.uint8(held - sizes.bits)
        yield _bytes_of(lay_out_cells(points, strip))


def _replace(
    value: ir.Value, pieces: Callable[[], Iterator[Bytes]], dtype: ir.DataType, shape: tuple[int, ...]
) -> None:
    value.const_value = StreamedTensor(pieces, dtype, ir.Shape(shape), name=value.name)
    value.shape, value.dtype = ir.Shape(shape), dtype
