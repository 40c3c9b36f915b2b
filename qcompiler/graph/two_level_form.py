"""Integer codes with two-level scales, in the ``offset_form``; scales and minima are computed by nodes over constants:

    low uint4 [S, s] -> Cast;  high uint8 [S, s / 4, 1] -> BitShift by 0, 2, 4, 6 -> BitwiseAnd 3 -> Cast -> Mul 16 -> Reshape -> Add
    (-> Sub 32 for signed ones) -> Mul step [S, 1] -> Reshape (-> Slice) -> Reshape [N, G]
    offset = Sub(Mul(middle, scale), minimum)

Codes of four bits have no high part. ONNX Runtime folds all of it when it loads the model.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import SchemeError
from qcompiler.graph.node_chain import NodeChain, constant_of, producer_of, uncast
from qcompiler.graph.offset_form import FLOAT, OffsetForm, held_as, offset_nodes
from qcompiler.graph.quantized import check_scales
from qcompiler.graph.stored_quantized import SCALE_NAMES, Layout
from qcompiler.graph.stored_two_level import StoredLevels, StoredTwoLevel
from qcompiler.quant import packing
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.two_level import Levels, TwoLevelTensor

_HIGH = 16.0  # what the lowest of the upper bits counts


def two_level_nodes(
    stored: StoredTwoLevel, layout: Layout, name: str, out_dtype: ir.DataType
) -> list[ir.Node]:
    """Nodes in order; the last yields the weight and carries the notes; see ``offset_nodes``.

    Raises:
        SchemeError: out_dtype cannot hold the scales.
    """
    check_scales(stored.scheme, name, out_dtype)
    scheme, chain = stored.asked, NodeChain(name)
    shape = scheme.scale_shape(stored.n, stored.k)
    bias = 1 << (scheme.level_bits - 1) if scheme.symmetric else 0
    exact = _emit_levels(chain, stored.scales, shape, bias, "scale")
    scale = held_as(chain, exact, scheme.scale_dtype, out_dtype, shape, "scale")
    offset = None
    if stored.minima is not None:
        held = scale if out_dtype == FLOAT else chain.add("Cast", [scale], "scale.again", to=FLOAT.value)
        minimum = _emit_levels(chain, stored.minima, shape, 0, "minimum")
        middle = chain.hold(np.array(scheme.stored_middle, np.float32), "middle")
        offset = chain.add("Sub", [chain.add("Mul", [middle, held], "middle.scaled"), minimum], "offset")
        offset = held_as(chain, offset, scheme.scale_dtype, out_dtype, shape, "offset")
    return offset_nodes(chain, stored, scale, offset, layout, name, out_dtype)


def read_two_level(form: OffsetForm) -> TwoLevelTensor | None:
    """The weight, its codes as they are stored (N * K bytes); None where the form is not of this kind.

    Raises:
        SchemeError: the numbers are none that a ``QuantScheme`` describes.
    """
    if isinstance(form.stored, StoredTwoLevel):
        return form.stored.tensor()
    scales = _read_levels(form.scale)
    if scales is None:
        return None
    minima = None
    if form.offset is not None:
        difference = uncast(form.offset).producer()
        minima = (
            None if difference is None or difference.op_type != "Sub" else _read_levels(difference.inputs[1])
        )
        if minima is None:
            return None
    dtype = SCALE_NAMES.get(form.scale.dtype or FLOAT, "float32")
    scheme = QuantScheme(form.bits, form.offset is None, Granularity.GROUP, form.group, dtype, two_level=True)
    found = (scheme.super_groups, scheme.level_bits)
    for part in (scales, minima):
        if part is not None and part[2:] != found:
            raise SchemeError(
                f"{form.source.name}: {part[2]} groups of {part[3]} bits share a step; {found[0]} of {found[1]} are read"
            )
    n, k = form.shape
    shape = scheme.scale_shape(n, k)

    def levels(part: Read, bias: int) -> Levels:
        return Levels(part[0][: shape[0] * shape[1]].reshape(shape), part[1], bias)

    bias = 1 << (scheme.level_bits - 1) if form.offset is None else 0
    return TwoLevelTensor(
        scheme, form.unsigned_codes(), levels(scales, bias), None if minima is None else levels(minima, 0)
    )


def _emit_levels(
    chain: NodeChain, stored: StoredLevels, shape: tuple[int, int], bias: int, suffix: str
) -> ir.Value:
    """Float32 [N, G]."""
    count, width = (int(size) for size in stored.low.shape.numpy())
    numbers = chain.add(
        "Cast", [chain.hold(stored.low, f"{suffix}.low")], f"{suffix}.low.number", to=FLOAT.value
    )
    if stored.high is not None:
        high = chain.reshape(
            chain.hold(stored.high, f"{suffix}.high"), (count, width // 4, 1), f"{suffix}.high.bytes"
        )
        places = chain.hold(np.array([0, 2, 4, 6], np.uint8), f"{suffix}.places")
        apart = chain.add("BitShift", [high, places], f"{suffix}.high.shifted", direction="RIGHT")
        mask = chain.hold(np.array(3, np.uint8), f"{suffix}.mask")
        apart = chain.add("BitwiseAnd", [apart, mask], f"{suffix}.high.bits")
        upper = chain.add("Cast", [apart], f"{suffix}.high.number", to=FLOAT.value)
        counts = chain.hold(np.array(_HIGH, np.float32), f"{suffix}.counts")
        upper = chain.reshape(
            chain.add("Mul", [upper, counts], f"{suffix}.upper"), (count, width), f"{suffix}.upper.rows"
        )
        numbers = chain.add("Add", [numbers, upper], f"{suffix}.number")
    if bias:
        taken = chain.hold(np.array(bias, np.float32), f"{suffix}.bias")
        numbers = chain.add("Sub", [numbers, taken], f"{suffix}.signed")
    step = chain.add(
        "Cast", [chain.hold(stored.step, f"{suffix}.step")], f"{suffix}.step.number", to=FLOAT.value
    )
    values = chain.add("Mul", [numbers, step], f"{suffix}.blocks")
    if count * width != shape[0] * shape[1]:
        values = chain.cut(values, shape[0] * shape[1], suffix)
    return chain.reshape(values, shape, f"{suffix}.values")


Read = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], int, int]
"""Codes [S s], steps [S], s, bits of a code."""


def _read_levels(value: ir.Value | None) -> Read | None:
    """What ``_emit_levels`` made a value from."""
    node = None if value is None else uncast(value).producer()
    if node is None or node.op_type != "Reshape":
        return None
    cut = producer_of(node, 0, "Slice")
    product = producer_of(producer_of(cut, 0, "Reshape") if cut is not None else node, 0, "Mul")
    step = constant_of(producer_of(product, 1, "Cast"), 0)
    signed = producer_of(product, 0, "Sub")
    numbers = signed if signed is not None else product
    total = producer_of(numbers, 0, "Add")
    low = constant_of(producer_of(total if total is not None else numbers, 0, "Cast"), 0)
    if step is None or low is None or low.dtype != ir.DataType.UINT4 or len(low.shape) != 2:
        return None
    codes: npt.NDArray[Any] = low.numpy().astype(np.uint8)
    bits = 4
    if total is not None:
        upper = producer_of(producer_of(total, 1, "Reshape"), 0, "Mul")
        shift = producer_of(producer_of(producer_of(upper, 0, "Cast"), 0, "BitwiseAnd"), 0, "BitShift")
        high = constant_of(producer_of(shift, 0, "Reshape"), 0)
        if high is None or high.dtype != ir.DataType.UINT8 or 4 * high.size != low.size:
            return None
        codes, bits = codes | (packing.unpack_flat(high.numpy(), codes.shape, 2) << np.uint8(4)), 6
    width = int(low.shape.numpy()[1])
    return codes.reshape(-1), step.numpy().astype(np.float32).reshape(-1), width, bits
