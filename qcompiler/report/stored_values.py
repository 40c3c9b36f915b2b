"""What a quantized weight of any model is worth: the floats that its product multiplies by.

*Given* a normalized model and a weight that ``read_products`` found. *Result* its numbers, or those of some of its input channels,
or outputs, where all of them would take too much memory. Codes with a scale for each output, of a DequantizeLinear or a QLinear operator,
and the packed codes of MatMulNBits are shifted and scaled here. Any other DequantizeLinear is run by ONNX Runtime, and so is an
operator that takes floats: on rows of the unit matrix it gives the weight itself, whatever its format.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import CalibrationError, InputError
from qcompiler.graph import own_gather_nbits
from qcompiler.graph.activation import KINDS
from qcompiler.graph.correction_form import corrected_output
from qcompiler.graph.extract import Piece, is_constant
from qcompiler.graph.own_matmul_nbits import INPUTS_OF_EACH, LAYOUT, PRODUCTS, THREE
from qcompiler.graph.region_run import constant_array
from qcompiler.quant import packing
from qcompiler.quant.affine import dequantize_rows
from qcompiler.report.quantized_products import GATHERS, PLACES, WEIGHT_INPUT, StoredWeight, kind_of

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
MOST_NUMBERS = 1 << 22
"""Of one weight that are read: 16 MiB of float32. More input channels than that leave are left out, evenly."""


@dataclass(frozen=True, eq=False)
class StoredValues:
    """Numbers of one weight [N, K], of a convolution [N, C x kernel].

    Attributes:
        values: float32 [rows, channels].
        rows, channels: int64, which of N and of K.
    """

    values: Floats
    rows: Indices
    channels: Indices


def stored_values(model: ir.Model, weight: StoredWeight, channels: Indices | None = None) -> StoredValues:
    """The numbers that the products of ``weight`` multiply by.

    Args:
        channels: int64, which of K to read, of a weight that is not looked up in; None: as many as ``MOST_NUMBERS`` leaves.
    Raises:
        InputError: its operator keeps them from being read; the message says which.
    """
    node = weight.nodes[0]
    if _is_lookup_of_codes(node):
        return _of_lookup(model, node)
    if node.op_type in WEIGHT_INPUT:
        return _of_float_product(model, weight, channels)
    if node.op_type in _INTEGERS:
        return _of_integer_product(model, node, channels)
    if node.op_type in GATHERS:
        return _by_looking_up(model, weight)
    if node.op_type in PRODUCTS and not node.op_type.startswith(THREE) and _is_codes_alone(weight):
        return _of_packed_codes(weight, channels)
    return _by_unit_rows(model, weight, channels)


def sampled(matrix: npt.NDArray[Any], channels: Indices | None = None) -> StoredValues:
    """Of a whole weight [N, K] of any float type, what is read of it."""
    found = _chosen(matrix, channels)
    return replace(found, values=found.values.astype(np.float32))


def _chosen(matrix: npt.NDArray[Any], channels: Indices | None) -> StoredValues:
    """Of a whole matrix [N, K], as it is."""
    if channels is None:
        channels = _evenly(matrix.shape[1], MOST_NUMBERS // matrix.shape[0])
    return StoredValues(matrix[:, channels], np.arange(matrix.shape[0]), channels)


def _evenly(size: int, most: int) -> Indices:
    count = min(size, max(1, most))
    return np.arange(count, dtype=np.int64) * size // count


def _of_codes(
    matrix: npt.NDArray[Any],
    scale: npt.NDArray[Any],
    zero_point: npt.NDArray[Any] | None,
    channels: Indices | None = None,
) -> StoredValues:
    """Of codes [N, K] with a scale for each output or for all of them: floats of those alone that are read."""
    found = _chosen(matrix, channels)
    flat = None if zero_point is None else zero_point.reshape(-1)
    return replace(found, values=dequantize_rows(found.values, scale.reshape(-1), flat))


def _of_float_product(model: ir.Model, weight: StoredWeight, channels: Indices | None) -> StoredValues:
    """What a DequantizeLinear yields."""
    node = weight.nodes[0]
    value = node.inputs[WEIGHT_INPUT[node.op_type]]
    assert value is not None
    turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))
    try:
        found = _of_rows_of_codes(model, value.producer(), turned, channels)
        if found is not None:
            return found
        _check_size(weight)
        array = constant_array(model, value)
    except CalibrationError as error:
        raise InputError(f"{node.name}: its weight cannot be computed ({error})") from error
    return sampled(array.T if turned else array.reshape(array.shape[0], -1), channels)


def _of_rows_of_codes(
    model: ir.Model, node: ir.Node | None, turned: bool, channels: Indices | None
) -> StoredValues | None:
    """Of the codes before a DequantizeLinear with a scale for each output or for all of them; None of any other node."""
    if node is None or node.op_type != "DequantizeLinear" or node.attributes.get_int("block_size", 0) != 0:
        return None
    codes, scale = _constant(model, node, 0), _constant(model, node, 1)
    zero_point = _constant(model, node, 2) if len(node.inputs) > 2 else None
    if codes is None or scale is None or (turned and codes.ndim != 2):
        return None
    axis = node.attributes.get_int("axis", 1)
    if scale.size > 1 and (scale.ndim != 1 or axis % codes.ndim != (1 if turned else 0)):
        return None
    return _of_codes(codes.T if turned else codes.reshape(codes.shape[0], -1), scale, zero_point, channels)


def _is_lookup_of_codes(node: ir.Node) -> bool:
    """Rows of a table that are looked up in codes and unpacked behind that."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    return table is not None and table.dtype is not None and not table.dtype.is_floating_point()


def _of_lookup(model: ir.Model, node: ir.Node) -> StoredValues:
    """Of a table with one scale."""
    unpacked = next(user for user in node.outputs[0].consumers() if user.op_type == "DequantizeLinear")
    codes, scale = _constant(model, node, 0), _constant(model, unpacked, 1)
    zero_point = _constant(model, unpacked, 2) if len(unpacked.inputs) > 2 else None
    if codes is None or scale is None or scale.size != 1:
        raise InputError(f"{node.name}: its table has no one constant scale")
    return _of_codes(codes, scale, zero_point)


_INTEGERS = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat"}
)
_LAST_AXIS = frozenset({"QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"})
"""Integer operators whose weight is [K, N]; of the others outputs come first."""


def _of_integer_product(model: ir.Model, node: ir.Node, channels: Indices | None) -> StoredValues:
    places = PLACES[kind_of(node)]
    if places.scales is None:
        raise InputError(f"{node.name}: {node.op_type} multiplies codes alone; scales are in nodes behind it")
    codes, scale = (_constant(model, node, place) for place in (places.codes, places.scales))
    given = places.zero_points is not None and places.zero_points < len(node.inputs)
    zero_point = _constant(model, node, places.zero_points or 0) if given else None
    if codes is None or scale is None:
        raise InputError(f"{node.name}: codes or scales are not constant")
    turned = node.op_type in _LAST_AXIS or (
        node.op_type == "QGemm" and not node.attributes.get_int("transB", 0)
    )
    matrix = codes.T if turned else codes.reshape(codes.shape[0], -1)
    return _of_codes(matrix, scale, zero_point, channels)


def _constant(model: ir.Model, node: ir.Node, place: int) -> npt.NDArray[Any] | None:
    value = node.inputs[place]
    return None if value is None else constant_array(model, value)


def _is_codes_alone(weight: StoredWeight) -> bool:
    """Whether codes, scales and packed zero points are constants of the node, in the stock order, and nothing is added to the product."""
    node = weight.nodes[0]
    first = 1 + INPUTS_OF_EACH * weight.product
    given = [value for value in node.inputs[first : first + 3] if value is not None]
    computed = weight.beside or weight.float_zero_points or weight.two_level
    constant = all(value.const_value is not None for value in given)
    return not computed and constant and node.attributes.get_int(LAYOUT, 0) == 0


def _of_packed_codes(weight: StoredWeight, channels: Indices | None) -> StoredValues:
    """Of MatMulNBits and what is made of it: some rows of codes are unpacked, the others are not touched."""
    node = weight.nodes[0]
    n, k = weight.shape
    first = 1 + INPUTS_OF_EACH * weight.product
    codes, scale, *rest = (_packed(node, place) for place in range(first, first + 3))
    assert codes is not None and scale is not None
    rows = _evenly(n, MOST_NUMBERS // k)
    group = node.attributes.get_int("block_size", k)
    groups = -(-k // group)
    unpacked = packing.unpack_matmul_nbits(codes.reshape(n, groups, -1)[rows], k, weight.bits)
    scales = scale.reshape(n, groups)[rows].astype(np.float32)
    points = np.full(scales.shape, 1 << (weight.bits - 1), np.float32)
    if rest[0] is not None:
        points = packing.unpack_zero_points(rest[0].reshape(n, -1)[rows], groups, weight.bits).astype(
            np.float32
        )
    values = unpacked.astype(np.float32)
    values -= np.repeat(points, group, axis=1)[:, :k]
    values *= np.repeat(scales, group, axis=1)[:, :k]
    if channels is None:
        return StoredValues(values, rows, np.arange(k))
    return StoredValues(values[:, channels], rows, channels)


def _packed(node: ir.Node, place: int) -> npt.NDArray[Any] | None:
    value = node.inputs[place] if place < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


MOST_WHOLE = 1 << 26
"""Numbers of a weight that ONNX Runtime unpacks whole: 256 MiB of float32, and its own copies."""


def _check_size(weight: StoredWeight) -> None:
    if weight.size > MOST_WHOLE:
        raise InputError(
            f"{weight.name}: {weight.size} numbers would be unpacked whole, which takes too much memory"
        )


def _by_looking_up(model: ir.Model, weight: StoredWeight) -> StoredValues:
    """Rows of a table."""
    node = weight.nodes[0]
    n, k = weight.shape
    indices = node.inputs[1 if node.op_type == own_gather_nbits.STOCK_OP else 0]
    assert indices is not None
    rows = _evenly(n, MOST_NUMBERS // k)
    (values,) = _runs(model, node, [indices], node.outputs[0], [{indices: rows[None]}])
    return StoredValues(values.reshape(len(rows), -1)[:, :k].astype(np.float32), rows, np.arange(k))


def _by_unit_rows(model: ir.Model, weight: StoredWeight, channels: Indices | None) -> StoredValues:
    """What an operator with float activations gives for rows of the unit matrix, without what it gives for 0 (its bias)."""
    _check_size(weight)
    node = weight.nodes[0]
    x = node.inputs[0]
    if weight.product >= len(node.outputs) or x is None or node.op_type.endswith(_CURVED):
        raise InputError(
            f"{node.name}: {node.op_type} gives a function of its products, which hides the weight"
        )
    n, k = weight.shape
    if channels is None:
        channels = _evenly(k, MOST_NUMBERS // n)
    dtype = np.dtype(np.float32) if x.dtype is None else x.dtype.numpy()
    leading = (1,) * (0 if x.shape is None else len(x.shape) - 2) + (ROWS,)
    residuals = [value for value in node.inputs[1:] if value is not None and not is_constant(value)]
    inputs = [x, *residuals]
    added = {value: np.zeros((*leading, n), dtype) for value in residuals}

    def unit_rows() -> Iterator[dict[ir.Value, npt.NDArray[Any]]]:
        yield {x: np.zeros((*leading, k), dtype), **added}
        for start in range(0, len(channels), ROWS):
            part = channels[start : start + ROWS]
            rows = np.zeros((ROWS, k), dtype)
            rows[np.arange(len(part)), part] = 1
            yield {x: rows.reshape(*leading, k), **added}

    output = node.outputs[weight.product] if len(node.outputs) > 1 else corrected_output(node)
    at_zero, *parts = _runs(model, node, inputs, output, unit_rows())
    columns = np.concatenate([(part - at_zero).reshape(ROWS, n) for part in parts])[: len(channels)]
    return StoredValues(np.ascontiguousarray(columns.T, np.float32), np.arange(n), channels)


ROWS = 128
"""Of the unit matrix at a time."""
_CURVED = (*KINDS, "SwiGlu")


def _runs(
    model: ir.Model,
    node: ir.Node,
    inputs: list[ir.Value],
    output: ir.Value,
    feeds: Iterable[dict[ir.Value, npt.NDArray[Any]]],
) -> list[npt.NDArray[Any]]:
    """What a product gives for each of the feeds, with what is added to it up to ``output``."""
    body = model.graph if node.graph is None else node.graph  # a branch or a loop may hold it
    try:
        piece = Piece(model, list(body), inputs, [output])
        return [piece.run(feed)[output] for feed in feeds]
    except CalibrationError as error:
        raise InputError(f"{node.name}: {node.op_type} cannot be run on its own ({error})") from error
