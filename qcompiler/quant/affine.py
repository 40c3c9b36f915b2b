"""Rounding to affine codes, w = (code - zero_point) * scale: the one home of rounding and zero points.

Generic over NumPy arrays and torch tensors. Letters: N outputs, K reduction, G groups of g along K (the last
may be short). Scales and zero points are [N, G], [N, 1] for a channel, [1, 1] for a tensor.
"""

from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, is_torch_array

from qcompiler.errors import SchemeError
from qcompiler.quant.scheme import QuantScheme, ScaleDtype

Array: TypeAlias = Any
"""A NumPy array or a torch tensor."""

_FLOAT16_SUBNORMAL = 2.0**-24
_FLOAT16_NORMAL = 2.0**-14
_FLOAT32_NORMAL = 2.0**-126
_EXACT = {
    "float32": 2.0**24,
    "float16": 2.0**11,
    "bfloat16": 2.0**8,
}  # whole numbers up to this are held as they are
_LARGEST = {"float32": 3.4028234663852886e38, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}


def range_to_scale(lo: Array, hi: Array, scheme: QuantScheme) -> tuple[Array, Array | None]:
    """Scale and zero point whose codes cover [lo, hi]; the range is widened to hold 0, but not for float zero points.

    A range far from 0 for its width is widened for float zero points too: its scale is so large that |lo| / scale is held to within one.
    Symmetric: |scale| = max(|lo|, |hi|) / 2^(bits - 1), and the scale is negative where hi is the larger, so that the extreme is always
    code 0 exactly and all of -2^(bits - 1)..2^(bits - 1) - 1 is used; the other end may be clipped by up to one step. Without a sign
    (``QuantScheme.signed_scales``) nothing is clipped: max(-lo / 2^(bits - 1), hi / (2^(bits - 1) - 1)). A range of nothing but 0 gets
    the smallest scale.

    Args:
        lo, hi: float32, any one shape.
    Returns:
        scale: float32 values that scheme.scale_dtype holds exactly, positive but for ``QuantScheme.signed_scales``.
        zero_point: float32 whole numbers 0..2^bits - 1 (any number that scheme.scale_dtype holds, for float ones), or None for a
            symmetric scheme.
    Raises:
        SchemeError: lo or hi is NaN or infinite, as they are where the weight is.
    """
    xp = array_namespace(lo, hi)
    if not bool(xp.all(xp.isfinite(lo) & xp.isfinite(hi))):
        raise SchemeError("the weight holds NaN or infinity; it cannot be quantized")
    if scheme.has_float_zero_points:
        step = hi / scheme.max_code - lo / scheme.max_code
        # Far from 0 a finer step would be lost: the zero point could not be held to within one.
        step = xp.maximum(step, xp.abs(lo) / _EXACT[scheme.scale_dtype])
        scale = store_scale(step, scheme.scale_dtype)
        return scale, store_zero_point(-lo / scale, scheme)
    lo = xp.where(lo < 0, lo, xp.zeros_like(lo))
    hi = xp.where(hi > 0, hi, xp.zeros_like(hi))
    if scheme.symmetric:
        if scheme.signed_scales:
            return store_scale(xp.where(hi > -lo, -hi, -lo) / scheme.midpoint, scheme.scale_dtype), None
        widest = xp.maximum(-lo / scheme.midpoint, hi / (scheme.midpoint - 1))
        return store_scale(widest, scheme.scale_dtype), None
    scale = store_scale(hi / scheme.max_code - lo / scheme.max_code, scheme.scale_dtype)
    return scale, store_zero_point(-lo / scale, scheme)


def store_zero_point(zero_point: Array, scheme: QuantScheme) -> Array:
    """The nearest zero points that can be stored, as float32: codes, or what scheme.scale_dtype holds. May overwrite its argument."""
    if not scheme.has_float_zero_points:
        return round_to_codes(zero_point, scheme)
    return store_values(zero_point, scheme.scale_dtype)


def offsets(scale: Array, zero_point: Array, scheme: QuantScheme) -> Array:
    """What a float zero point adds to (code - middle) * scale: (middle - zero_point) * scale, as scheme.scale_dtype holds it.

    The middle is that of the codes as they are stored: of four bits for three.
    """
    return store_values((scheme.stored_middle - zero_point) * scale, scheme.scale_dtype)


def store_scale(scale: Array, dtype: ScaleDtype) -> Array:
    """The nearest scales that ``dtype`` can hold, as float32; always finite, never 0 and safe to divide by. They keep their sign.

    What follows is of their size. 0 (an all-zero group) becomes the smallest: beside
    an offset, as float zero points have, a kernel's own rounding of activations costs as much as the scale is large.
    What is too large becomes the largest finite value. float16 subnormals are coarse: they round up, so that the
    range stays covered. float32 and bfloat16 stop at the smallest normal number, whose inverse is still finite.
    """
    xp = array_namespace(scale)
    size = xp.clip(xp.abs(scale), _FLOAT32_NORMAL, _LARGEST[dtype])
    held: Array = size if dtype == "float32" else _cast(_cast(size, dtype), "float32")
    if dtype == "float16":
        held = xp.where((size < _FLOAT16_NORMAL) & (held < size), held + _FLOAT16_SUBNORMAL, held)
    return xp.where(scale < 0, -held, held)


def store_values(values: Array, dtype: ScaleDtype) -> Array:
    """The nearest values that ``dtype`` can hold, as float32; what is too large becomes its largest finite one."""
    xp = array_namespace(values)
    clipped = xp.clip(values, -_LARGEST[dtype], _LARGEST[dtype])
    return clipped if dtype == "float32" else _cast(_cast(clipped, dtype), "float32")


def check_held(values: npt.NDArray[Any], dtype: ScaleDtype, name: str) -> None:
    """Raises SchemeError where ``dtype`` does not hold the values exactly, or they are not finite."""
    if not np.isfinite(values).all():
        raise SchemeError(f"{name}: holds NaN or infinity; every value must be a number")
    if not np.array_equal(store_values(values, dtype), values):
        raise SchemeError(f"{name}: values that {dtype} does not hold; round them with store_values")


def round_to_codes(values: Array, scheme: QuantScheme) -> Array:
    """Round half to even and clamp to 0..2^bits - 1, in place: ``values`` is overwritten and returned."""
    if is_torch_array(values):
        return values.round_().clamp_(0, scheme.max_code)
    np.rint(values, out=values)
    return np.clip(values, 0, scheme.max_code, out=values)


def quantize_codes(weight: Array, scale: Array, zero_point: Array | None, scheme: QuantScheme) -> Array:
    """Nearest codes for given scales.

    Args:
        weight: [N, K], any floating point type.
        scale, zero_point: as from range_to_scale, [N, G], [N, 1] or [1, 1].
    Returns:
        uint8 [N, K], 0..2^bits - 1.
    """
    xp = array_namespace(weight)
    grouped = to_groups(weight, scheme)
    values = grouped / scale[..., None]
    if not scheme.has_float_zero_points:
        values = xp.round(values)
    values += scheme.midpoint if zero_point is None else zero_point[..., None]
    codes = xp.astype(round_to_codes(values, scheme), xp.uint8)
    return from_groups(codes, int(weight.shape[-1]))


def dequantize_codes(codes: Array, scale: Array, zero_point: Array | None, scheme: QuantScheme) -> Array:
    """The weights that codes mean: float32 [N, K] from uint8 [N, K].

    With float zero points (code - zero_point) * scale is computed as (code - middle) * scale + ``offsets``, as the graph does.
    """
    xp = array_namespace(codes)
    values = to_groups(codes, scheme)
    if zero_point is not None and scheme.has_float_zero_points:
        values -= scheme.stored_middle
        values *= scale[..., None]
        values += offsets(scale, zero_point, scheme)[..., None]
        return from_groups(values, int(codes.shape[-1]))
    if zero_point is None:
        values -= scheme.midpoint
    else:
        values -= xp.astype(zero_point, xp.float32)[..., None]
    values *= scale[..., None]
    return from_groups(values, int(codes.shape[-1]))


def dequantize_rows(
    codes: npt.NDArray[Any], scale: npt.NDArray[Any], zero_point: npt.NDArray[Any] | None
) -> npt.NDArray[np.float32]:
    """What integer codes of any type mean, float32 [N, K] from [N, K]; scale and zero_point are [N] or [1], zero_point None for 0."""
    values = codes.astype(np.float32)
    if zero_point is not None:
        values -= zero_point.astype(np.float32)[:, None]
    values *= scale.astype(np.float32)[:, None]
    return values


def unsigned_zero_point(values: npt.NDArray[Any], bits: int, signed: bool) -> npt.NDArray[np.uint8]:
    """Zero points of unsigned codes, uint8, from those of signed codes (-2^(bits - 1)..) or of unsigned ones."""
    return (values.astype(np.int16) + ((1 << (bits - 1)) if signed else 0)).astype(np.uint8)


def is_midpoint(values: npt.NDArray[Any], bits: int, signed: bool) -> bool:
    """Whether all zero points are the middle of the codes, as a symmetric scheme has them."""
    return bool((values == (0 if signed else 1 << (bits - 1))).all())


def to_groups(rows: Array, scheme: QuantScheme) -> Array:
    """A float32 copy [N, G, g] of [N, K]; a short last group is filled up with 0."""
    xp = array_namespace(rows)
    n, k = (int(size) for size in rows.shape)
    g, width = scheme.groups(k), scheme.group_width(k)
    if g * width == k:
        return xp.reshape(_cast(rows, "float32", copy=True), (n, g, width))
    if is_torch_array(rows):
        padded = xp.zeros((n, g * width), dtype=xp.float32, device=rows.device)
    else:
        padded = xp.zeros((n, g * width), dtype=xp.float32)
    padded[:, :k] = _cast(rows, "float32", copy=False)
    return xp.reshape(padded, (n, g, width))


def from_groups(groups: Array, k: int) -> Array:
    """The [N, K] rows of [N, G, g]; what filled up a short last group is dropped."""
    n, g, width = groups.shape
    return groups.reshape(n, g * width)[:, :k]


def _cast(values: Array, dtype: ScaleDtype, copy: bool = False) -> Array:
    """To a floating point type by its name; NumPy's bfloat16 is ml_dtypes'."""
    xp = array_namespace(values)
    if dtype == "bfloat16" and not is_torch_array(values):
        return values.astype(ml_dtypes.bfloat16)
    return xp.astype(values, getattr(xp, dtype), copy=copy)
