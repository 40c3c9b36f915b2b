import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper

from qcompiler.algorithms import rtn
from qcompiler.errors import SchemeError
from qcompiler.quant import packing
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme, ZeroPoint

Codes = npt.NDArray[np.uint8]


@st.composite
def codes_of(draw: st.DrawFn) -> tuple[Codes, int]:
    bits = draw(st.sampled_from([2, 4, 8]))
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 70)))
    return draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1))), bits


@given(codes_of())
@settings(deadline=None)
def test_flat_round_trip(drawn: tuple[Codes, int]) -> None:
    codes, bits = drawn
    packed = packing.pack_flat(codes, bits)
    assert packed.size == -(-codes.size * bits // 8)
    assert np.array_equal(packing.unpack_flat(packed, codes.shape, bits), codes)


@given(codes_of())
@settings(deadline=None)
def test_transposed_is_flat_of_the_transpose(drawn: tuple[Codes, int]) -> None:
    codes, bits = drawn
    packed = packing.pack_transposed(codes, bits)
    assert np.array_equal(packed, packing.pack_flat(np.ascontiguousarray(codes.T), bits))
    assert np.array_equal(packing.unpack_transposed(packed, codes.shape[1], codes.shape[0], bits), codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_transposed_in_strips(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_CHUNK", 64)
    codes = np.random.default_rng(0).integers(0, 2**bits, (7, 45), np.uint8)
    packed = packing.pack_transposed(codes, bits)
    assert np.array_equal(packed, packing.pack_flat(np.ascontiguousarray(codes.T), bits))
    assert np.array_equal(packing.unpack_transposed(packed, 45, 7, bits), codes)


@given(codes_of(), st.sampled_from([16, 32, 64, 128, 256]), st.booleans())
@settings(deadline=None)
def test_matmul_nbits_round_trip(drawn: tuple[Codes, int], group: int, symmetric: bool) -> None:
    codes, bits = drawn
    scheme = QuantScheme(bits, symmetric, Granularity.GROUP, group)
    zero_point = None if symmetric else codes[:, :1].repeat(scheme.groups(codes.shape[1]), axis=1)
    packed = packing.pack_matmul_nbits(codes, zero_point, scheme)
    n, k = codes.shape
    assert packed.shape == (n, scheme.groups(k), group * bits // 8)
    assert np.array_equal(packing.unpack_matmul_nbits(packed, k, bits), codes)
    whole = packing.unpack_matmul_nbits(packed, scheme.groups(k) * group, bits)
    padding = scheme.midpoint if zero_point is None else zero_point[:, -1:]
    assert np.all(whole[:, k:] == padding)


@given(codes_of())
@settings(deadline=None)
def test_zero_points_round_trip(drawn: tuple[Codes, int]) -> None:
    zero_point, bits = drawn
    packed = packing.pack_zero_points(zero_point, bits)
    assert packed.shape == (zero_point.shape[0], -(-zero_point.shape[1] * bits // 8))
    assert np.array_equal(packing.unpack_zero_points(packed, zero_point.shape[1], bits), zero_point)


@pytest.mark.parametrize(
    ("bits", "unsigned", "signed"),
    [
        (2, onnx.TensorProto.UINT2, onnx.TensorProto.INT2),
        (4, onnx.TensorProto.UINT4, onnx.TensorProto.INT4),
        (8, onnx.TensorProto.UINT8, onnx.TensorProto.INT8),
    ],
)
@pytest.mark.parametrize("shape", [(4, 8), (3, 5)])
def test_onnx_reads_what_we_pack(bits: int, unsigned: int, signed: int, shape: tuple[int, int]) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, shape, np.uint8)
    as_unsigned = helper.make_tensor("w", unsigned, shape, packing.pack_flat(codes, bits).tobytes(), raw=True)
    assert np.array_equal(numpy_helper.to_array(as_unsigned).astype(np.int32), codes)
    flat = packing.pack_flat(packing.shift_sign(codes, bits), bits)
    as_signed = helper.make_tensor("w", signed, shape, flat.tobytes(), raw=True)
    expected = codes.astype(np.int32) - (1 << (bits - 1))
    assert np.array_equal(numpy_helper.to_array(as_signed).astype(np.int32), expected)
    assert np.array_equal(packing.shift_sign(packing.shift_sign(codes, bits), bits), codes)


@pytest.mark.parametrize("zero_point", ["int", "float"])
def test_lifting_one_bit_keeps_the_values(zero_point: ZeroPoint) -> None:
    weight = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    scheme = QuantScheme(1, False, Granularity.GROUP, 16, zero_point=zero_point)
    tensor = rtn.quantize(weight, None, scheme)
    lifted = packing.lift(tensor)
    assert lifted.scheme == replace(scheme, bits=2)
    assert np.array_equal(lifted.dequantize(), tensor.dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", [Granularity.GROUP, Granularity.CHANNEL])
def test_lifting_three_bits_keeps_the_values(symmetric: bool, granularity: Granularity) -> None:
    weight = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    scheme = QuantScheme(3, symmetric, granularity, 16 if granularity is Granularity.GROUP else None)
    tensor = rtn.quantize(weight, None, scheme)
    lifted = packing.lift(tensor)
    assert lifted.scheme.bits == 4 and lifted.scheme.symmetric == symmetric
    assert np.array_equal(lifted.dequantize(), tensor.dequantize())
    assert packing.lift(lifted) is lifted
    schemes = [QuantScheme(bits, True, Granularity.CHANNEL) for bits in (2, 3, 4, 8)]
    assert [scheme.storage_bits for scheme in schemes] == [2, 4, 4, 8]


def test_three_bits_have_no_layout() -> None:
    with pytest.raises(SchemeError, match="lift"):
        packing.pack_flat(np.zeros(4, np.uint8), 3)
    with pytest.raises(SchemeError, match="granularity group"):
        packing.pack_matmul_nbits(np.zeros((1, 4), np.uint8), None, QuantScheme(4, True, Granularity.CHANNEL))


@pytest.mark.parametrize("k", [256, 272, 40])
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256])
@pytest.mark.parametrize(("bits", "symmetric"), [(1, False), *itertools.product((2, 3, 4, 8), (True, False))])
def test_onnxruntime_computes_with_what_we_pack(bits: int, symmetric: bool, group: int, k: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(24, k)).astype(np.float32)
    x = rng.normal(size=(3, k)).astype(np.float32)
    tensor = rtn.quantize(weight, None, QuantScheme(bits, symmetric, Granularity.GROUP, group))
    expected = x @ tensor.dequantize().T
    # float32 sums of k products in another order
    tolerance = 8 * np.finfo(np.float32).eps * float((np.abs(x) @ np.abs(tensor.dequantize()).T).max())
    assert np.abs(_matmul_nbits(x, tensor) - expected).max() <= tolerance


def _matmul_nbits(x: npt.NDArray[np.float32], tensor: AffineTensor) -> npt.NDArray[np.float32]:
    """ONNX Runtime's own kernel at accuracy level 0 (float32)."""
    lifted = packing.lift(tensor)
    scheme, (n, k) = lifted.scheme, lifted.shape
    initializers: dict[str, npt.NDArray[Any]] = {
        "b": packing.pack_matmul_nbits(lifted.codes, lifted.zero_point, scheme),
        "scales": lifted.scale,
    }
    if lifted.zero_point is not None:
        initializers["zero_points"] = packing.pack_zero_points(lifted.zero_point, scheme.bits)
    node = helper.make_node(
        "MatMulNBits", ["x", *initializers], ["y"], domain="com.microsoft",
        K=k, N=n, bits=scheme.bits, block_size=scheme.group_size, accuracy_level=0,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, k])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, n])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: npt.NDArray[np.float32] = session.run(None, {"x": x})[0]
    return result
