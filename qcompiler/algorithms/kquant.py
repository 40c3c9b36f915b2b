"""Codes with two-level scales (k-quants): weighted least squares for each group, then for what its super-block can store.

    argmin over scale s, minimum m, codes c of   sum_k v_k (w_k - (c_k s - m))^2

as published with llama.cpp's k-quants: v_k = h_k sqrt(sigma^2 + w_k^2), where h is the mean square of the channel over calibration data
and sigma^2 twice the mean square of the weights; v_k = rms(w) + |w_k| without data. Each group tries several ranges, each
refitted to its codes in closed form. Scales are then brought to their two levels, minima refitted for the scales that are stored, brought
to theirs, and the codes rounded anew for both. In a symmetric scheme there are no minima, and a scale's sign puts the largest
weight where there is one more code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import Device, chunk_size, fetch, map_in_threads, place, row_blocks
from qcompiler.algorithms.limits import check_at_least
from qcompiler.errors import SchemeError
from qcompiler.quant.affine import Array, from_groups, round_to_codes, to_groups
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.two_level import TwoLevelTensor, offset_values, scale_values, to_levels

Floats = npt.NDArray[np.float32]

_WIDEST = 2.0  # a scale that a refit may come to, as a share of the full range's
_SMALLEST = 2.0**-126  # of float32's normal numbers; the inverse of what is smaller is infinite


@dataclass(frozen=True, slots=True)
class KquantOptions:
    """How scales and minima are searched.

    Attributes:
        steps: how many ranges are tried, from a little above the full one downward.
        shrink: the smallest of them, as a share of the full one.
        rounds: refits of each.
        weighted: weigh errors by the channels' mean squares when there are statistics.
        device: where the maths runs.
    Raises:
        SchemeError: a number outside what it can be.
    """

    steps: int = 10
    shrink: float = 0.6
    rounds: int = 2
    weighted: bool = True
    device: Device = "cpu"

    def __post_init__(self) -> None:
        check_at_least(self, steps=1, rounds=0)
        if not 0 < self.shrink <= 1:
            raise SchemeError(f"shrink: {self.shrink} is no share of the range; give more than 0, at most 1")


def quantize(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | None,
    scheme: QuantScheme,
    options: KquantOptions | None = None,
) -> TwoLevelTensor:
    """Two-level scales of small weighted squared error, and the nearest codes for them.

    Args:
        weight: [N, K] of any floating point type; it may be a view of a mapped file: it is read in blocks of
            rows.
        statistics: with the Hessian or the mean squares of the channels; None weighs by the weights alone.
        scheme: how the weight will be stored, with two_level.
        options: how long to search, and where.
    Raises:
        SchemeError: the weight holds NaN or infinity, or the scheme has one level.
    """
    options = options or KquantOptions()
    if not scheme.two_level:
        raise SchemeError(f"kquant: {scheme.label} has one level of scales; set two_level: true")
    n, k = weight.shape
    known = None if statistics is None or not options.weighted else statistics.diagonal()
    driven = None if known is None or not (known > 0).any() else known
    # A channel that calibration never drove still counts a little: other data may drive it.
    h = np.ones(k, np.float32) if driven is None else np.maximum(driven, 0) / float(driven.mean()) + 1e-6
    present = to_groups(place(np.ones((1, k), np.float32), options.device), scheme)
    channel = to_groups(place(h[None], options.device), scheme) * present
    shape = scheme.scale_shape(n, k)
    scale, minimum = np.empty(shape, np.float32), np.zeros(shape, np.float32)
    codes = np.empty((n, k), np.uint8)

    def weights_of(w: Array) -> Array:
        return _element_weights(w, channel, present, driven is not None)

    def search(rows: Array, here: slice) -> None:
        w = to_groups(rows, scheme)
        found = _search(w, weights_of(w), scheme, options)
        scale[here], minimum[here] = (fetch(part) for part in found)

    def refit_minima(rows: Array, here: slice) -> None:
        w = to_groups(rows, scheme)
        s, m = place(stored[here], options.device), place(minimum[here], options.device)
        minimum[here] = fetch(_refitted_minima(w, weights_of(w), s, m, scheme))

    def encode(rows: Array, here: slice) -> None:
        s = place(stored[here], options.device)
        w = to_groups(rows, scheme)
        if offset is not None:
            w -= place(offset[here], options.device)[..., None]
        codes[here] = fetch(from_groups(_centred_codes(w, s, middle, scheme), k)).astype(np.uint8)

    _sweep(weight, search, options.device)
    scales = to_levels(scale, scheme, signed=scheme.symmetric)
    stored, offset, minima = scale_values(scales, scheme), None, None
    middle = scheme.midpoint
    if not scheme.symmetric:
        _sweep(weight, refit_minima, options.device)
        minima = to_levels(minimum, scheme, signed=False)
        offset, middle = offset_values(stored, minima, scheme), scheme.stored_middle
    _sweep(weight, encode, options.device)
    return TwoLevelTensor(scheme, codes, scales, minima)


def _element_weights(w: Array, channel: Array, present: Array, driven: bool) -> Array:
    """v of [n, G, g]."""
    xp = array_namespace(w)
    square = xp.sum(w * w, axis=-1, keepdims=True) / xp.sum(present, axis=-1, keepdims=True)
    if driven:
        return channel * xp.sqrt(2 * square + w * w + 1e-30)
    return present * (xp.sqrt(square) + xp.abs(w) + 1e-15)


def _search(w: Array, v: Array, scheme: QuantScheme, options: KquantOptions) -> tuple[Array, Array]:
    """Scales and minima [n, G] of least weighted error, before they are stored."""
    xp = array_namespace(w)
    if not bool(xp.all(xp.isfinite(w))):
        raise SchemeError("the weight holds NaN or infinity; it cannot be quantized")
    top = 1.05 if options.steps > 1 else 1.0
    if scheme.symmetric:
        largest, lowest = xp.max(w, axis=-1), xp.min(w, axis=-1)
        full = (
            xp.where(largest > -lowest, -largest, -lowest) / scheme.midpoint
        )  # the largest becomes the lowest code
        starts = [
            (full * float(share), xp.zeros_like(full))
            for share in np.linspace(top, options.shrink, options.steps)
        ]
    else:
        zero = xp.zeros_like(w[..., 0])
        hi, lo = xp.maximum(xp.max(w, axis=-1), zero), xp.minimum(xp.min(w, axis=-1), zero)
        full = (hi - lo) / scheme.max_code
        starts = [
            (full * float(share), -lo * float(share))
            for share in np.linspace(top, options.shrink, options.steps)
        ]
    best_scale, best_minimum = starts[0]
    best = xp.full_like(best_scale, float("inf"))
    most = _WIDEST * xp.abs(full)
    for scale, minimum in starts:
        for _ in range(options.rounds + 1):
            c = _codes(w, scale, minimum, scheme)
            error = _error(w, v, c, scale, minimum, scheme)
            better = error < best
            best = xp.where(better, error, best)
            best_scale = xp.where(better, scale, best_scale)
            best_minimum = xp.where(better, minimum, best_minimum)
            scale, minimum = _least_squares(w, v, c, scale, most, scheme)
    return best_scale, best_minimum


def _codes(w: Array, scale: Array, minimum: Array, scheme: QuantScheme) -> Array:
    if scheme.symmetric:
        return _centred_codes(w, scale, scheme.midpoint, scheme)
    return _centred_codes(w + minimum[..., None], scale, 0, scheme)


def _centred_codes(w: Array, scale: Array, middle: int, scheme: QuantScheme) -> Array:
    """round(w / scale) + middle, clamped; ``middle`` where the scale is 0, or so small that it has no inverse."""
    xp = array_namespace(w)
    none = xp.abs(scale) < _SMALLEST
    inverse = xp.where(none, xp.zeros_like(scale), 1 / xp.where(none, xp.ones_like(scale), scale))
    values = w * inverse[..., None]
    values += middle
    return round_to_codes(values, scheme)


def _error(w: Array, v: Array, c: Array, scale: Array, minimum: Array, scheme: QuantScheme) -> Array:
    xp = array_namespace(w)
    middle = scheme.midpoint if scheme.symmetric else 0
    miss = (c - middle) * scale[..., None] - minimum[..., None] - w
    return xp.sum(v * miss * miss, axis=-1)


def _least_squares(
    w: Array, v: Array, c: Array, old: Array, most: Array, scheme: QuantScheme
) -> tuple[Array, Array]:
    """Scale and minimum of least weighted error for these codes; a minimum below 0 becomes 0.

    Args:
        old, most: [n, G], the present scale, which stays where these codes tell of none, and the size of the largest that is believed:
            codes that are nearly all the same leave a quotient of two rounding errors.
    """
    xp = array_namespace(w)
    if scheme.symmetric:
        c = c - scheme.midpoint
        along, across = xp.sum(v * c * c, axis=-1), xp.sum(v * c * w, axis=-1)
        return _ratio(across, along, old, most), xp.zeros_like(old)
    total = xp.sum(v, axis=-1)
    total = xp.where(total > 0, total, xp.ones_like(total))
    c_mean, w_mean = xp.sum(v * c, axis=-1) / total, xp.sum(v * w, axis=-1) / total
    centred = c - c_mean[..., None]
    scale = _ratio(xp.sum(v * centred * w, axis=-1), xp.sum(v * centred * centred, axis=-1), old, most)
    scale = xp.where(scale > 0, scale, old)
    minimum = c_mean * scale - w_mean
    alone = _ratio(xp.sum(v * c * w, axis=-1), xp.sum(v * c * c, axis=-1), old, most)
    scale = xp.where((minimum < 0) & (alone > 0), alone, scale)
    return scale, xp.clip(minimum, 0, None)


def _refitted_minima(w: Array, v: Array, scale: Array, minimum: Array, scheme: QuantScheme) -> Array:
    """Minima of least weighted error for stored scales and the codes they give with the present minima."""
    xp = array_namespace(w)
    c = _codes(w, scale, minimum, scheme)
    total = xp.sum(v, axis=-1)
    total = xp.where(total > 0, total, xp.ones_like(total))
    return xp.clip(xp.sum(v * (c * scale[..., None] - w), axis=-1) / total, 0, None)


def _ratio(above: Array, below: Array, otherwise: Array, most: Array) -> Array:
    """above / below, or ``otherwise`` where that is nothing or larger than ``most``."""
    xp = array_namespace(above)
    some = (below > 0) & (xp.abs(above) <= most * below)
    return xp.where(some, above, otherwise) / xp.where(some, below, xp.ones_like(below))


def _sweep(weight: npt.NDArray[Any], work: Callable[[Array, slice], None], device: Device) -> None:
    """``work`` on chunks of rows, float32 [n, K], with which rows they are."""

    def one_chunk(block: npt.NDArray[Any], start: int, rows: slice) -> None:
        work(place(block[rows], device), slice(start + rows.start, start + rows.stop))

    for rows in row_blocks(weight):
        # One sweep over a transposed, mapped file, not one for each chunk.
        block = np.ascontiguousarray(weight[rows])
        map_in_threads(
            partial(one_chunk, block, rows.start), list(row_blocks(block, chunk_size(device))), device
        )
