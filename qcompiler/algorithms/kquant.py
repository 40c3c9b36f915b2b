"""Codes with two-level scales (k-quants): weighted least squares for each group, then for what its super-block can store.

    argmin over scale s, minimum m, codes c of   sum_k v_k (w_k - (c_k s - m))^2

as published with llama.cpp's k-quants: v_k = h_k sqrt(sigma^2 + w_k^2), where h is the mean square of the channel over calibration data
and sigma^2 twice the mean square of the group's weights (there: of its super-block's); v_k = rms(w) + |w_k| without data. Each group
tries several ranges, each refitted to its codes in closed form. Scales are then brought to their two levels, minima refitted for the
scales that are stored, brought to theirs, and the codes rounded anew for both. In a symmetric scheme there are no minima, and a scale's
sign puts the largest weight where there is one more code.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import Device, fetch, place
from qcompiler.algorithms.mse import channel_importance
from qcompiler.algorithms.range_search import RangeSearchOptions
from qcompiler.algorithms.sweep import sweep_rows
from qcompiler.errors import SchemeError
from qcompiler.quant.affine import Array, from_groups, round_to_codes, to_groups
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.two_level import TwoLevelTensor, offset_values, scale_values, to_levels

Floats = npt.NDArray[np.float32]

_WIDEST = 2.0  # a scale that a refit may come to, as a share of the full range's
_SMALLEST = 2.0**-126  # of float32's normal numbers; the inverse of what is smaller is infinite


@dataclass(frozen=True, slots=True)
class KquantOptions(RangeSearchOptions):
    """The first range is a little above the full one, where there are several."""

    steps: int = 10
    shrink: float = 0.6


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
    weighing = _Weighing.of(weight.shape[1], statistics if options.weighted else None, scheme, options.device)
    scale, minimum = _searched(weight, weighing, scheme, options)
    scales = to_levels(scale, scheme, signed=scheme.symmetric)
    stored = scale_values(scales, scheme)
    if scheme.symmetric:
        return TwoLevelTensor(scheme, _encoded(weight, stored, None, scheme, options.device), scales, None)
    minima = to_levels(
        _refitted_minima(weight, weighing, stored, minimum, scheme, options.device), scheme, signed=False
    )
    offset = offset_values(stored, minima, scheme)
    return TwoLevelTensor(scheme, _encoded(weight, stored, offset, scheme, options.device), scales, minima)


def _searched(
    weight: npt.NDArray[Any], weighing: "_Weighing", scheme: QuantScheme, options: KquantOptions
) -> tuple[Floats, Floats]:
    """Scales and minima [N, G] of least weighted error for a weight [N, K], before they are stored."""
    shape = scheme.scale_shape(*weight.shape)
    scale, minimum = np.empty(shape, np.float32), np.empty(shape, np.float32)

    def work(rows: Array, here: slice) -> None:
        scale[here], minimum[here] = (
            fetch(part) for part in _Groups.of(rows, weighing, scheme).search(options)
        )

    sweep_rows(weight, work, options.device)
    return scale, minimum


def _refitted_minima(
    weight: npt.NDArray[Any],
    weighing: "_Weighing",
    scale: Floats,
    minimum: Floats,
    scheme: QuantScheme,
    device: Device,
) -> Floats:
    """Minima [N, G] of least weighted error for stored scales and the codes that they give with the present minima."""
    refitted = np.empty_like(minimum)

    def work(rows: Array, here: slice) -> None:
        groups = _Groups.of(rows, weighing, scheme)
        refitted[here] = fetch(groups.minima_for(place(scale[here], device), place(minimum[here], device)))

    sweep_rows(weight, work, device)
    return refitted


def _encoded(
    weight: npt.NDArray[Any], scale: Floats, offset: Floats | None, scheme: QuantScheme, device: Device
) -> npt.NDArray[np.uint8]:
    """The codes [N, K] nearest to a weight, for stored scales and offsets [N, G]."""
    codes = np.empty(weight.shape, np.uint8)
    middle = scheme.midpoint if offset is None else scheme.stored_middle

    def work(rows: Array, here: slice) -> None:
        w = to_groups(rows, scheme)
        if offset is not None:
            w -= place(offset[here], device)[..., None]
        found = _rounded(w, place(scale[here], device), middle, scheme)
        codes[here] = fetch(from_groups(found, weight.shape[1])).astype(np.uint8)

    sweep_rows(weight, work, device)
    return codes


@dataclass(frozen=True, slots=True, eq=False)
class _Weighing:
    """How errors are weighed.

    Attributes:
        channel: float32 [1, G, g], the mean squares of the channels, with mean 1; 0 where a short group is filled up.
        present: float32 [1, G, g], 1, or 0 where a short group is filled up.
        driven: whether the mean squares are known.
    """

    channel: Array
    present: Array
    driven: bool

    @classmethod
    def of(
        cls, k: int, statistics: InputStatistics | None, scheme: QuantScheme, device: Device
    ) -> "_Weighing":
        known = None if statistics is None else statistics.diagonal()
        driven = known is not None and bool((known > 0).any())
        present = to_groups(place(np.ones((1, k), np.float32), device), scheme)
        return cls(channel_importance(statistics, k, scheme, device), present, driven)

    def of_elements(self, w: Array) -> Array:
        """v [n, G, g] for weights w [n, G, g]."""
        xp = array_namespace(w)
        square = xp.sum(w * w, axis=-1, keepdims=True) / xp.sum(self.present, axis=-1, keepdims=True)
        if self.driven:
            return self.channel * xp.sqrt(2 * square + w * w + 1e-30)
        return self.present * (xp.sqrt(square) + xp.abs(w) + 1e-15)


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """The groups of some rows, and what is minimised for each.

    Attributes:
        w: float32 [n, G, g], the weights.
        v: float32 [n, G, g], how much the square of each error counts.
    """

    w: Array
    v: Array
    scheme: QuantScheme

    @classmethod
    def of(cls, rows: Array, weighing: _Weighing, scheme: QuantScheme) -> "_Groups":
        w = to_groups(rows, scheme)
        return cls(w, weighing.of_elements(w), scheme)

    def search(self, options: KquantOptions) -> tuple[Array, Array]:
        """Scales and minima [n, G] of least weighted error.

        Raises:
            SchemeError: the weight holds NaN or infinity.
        """
        xp = array_namespace(self.w)
        if not bool(xp.all(xp.isfinite(self.w))):
            raise SchemeError("the weight holds NaN or infinity; it cannot be quantized")
        full, low = self._range()
        top = 1.05 if options.steps > 1 else 1.0
        best_scale, best_minimum = full, low
        best = xp.full_like(full, float("inf"))
        most = _WIDEST * xp.abs(full)
        for share in np.linspace(top, options.shrink, options.steps):
            scale, minimum = full * float(share), low * float(share)
            for _ in range(options.rounds + 1):
                c = self._codes(scale, minimum)
                error = self._error(c, scale, minimum)
                better = error < best
                best = xp.where(better, error, best)
                best_scale = xp.where(better, scale, best_scale)
                best_minimum = xp.where(better, minimum, best_minimum)
                scale, minimum = self._least_squares(c, scale, most)
        return best_scale, best_minimum

    def minima_for(self, scale: Array, minimum: Array) -> Array:
        """Minima [n, G] of least weighted error for these scales and the codes that they give with these minima."""
        xp = array_namespace(self.w)
        c = self._codes(scale, minimum)
        return xp.clip(xp.sum(self.v * (c * scale[..., None] - self.w), axis=-1) / self._total(), 0, None)

    def _range(self) -> tuple[Array, Array]:
        """Scale and minimum [n, G] of each group's full range; in a symmetric scheme the largest weight has the lowest code."""
        xp = array_namespace(self.w)
        hi, lo = xp.max(self.w, axis=-1), xp.min(self.w, axis=-1)
        zero = xp.zeros_like(hi)
        if self.scheme.symmetric:
            return xp.where(hi > -lo, -hi, -lo) / self.scheme.midpoint, zero
        hi, lo = xp.maximum(hi, zero), xp.minimum(lo, zero)
        return (hi - lo) / self.scheme.max_code, -lo

    def _codes(self, scale: Array, minimum: Array) -> Array:
        """The nearest codes, float32 whole numbers [n, G, g], for scales and minima [n, G]."""
        if self.scheme.symmetric:
            return _rounded(self.w, scale, self.scheme.midpoint, self.scheme)
        return _rounded(self.w + minimum[..., None], scale, 0, self.scheme)

    def _error(self, c: Array, scale: Array, minimum: Array) -> Array:
        """The weighted squared error [n, G] of codes [n, G, g] with scales and minima [n, G]."""
        xp = array_namespace(self.w)
        middle = self.scheme.midpoint if self.scheme.symmetric else 0
        miss = (c - middle) * scale[..., None] - minimum[..., None] - self.w
        return xp.sum(self.v * miss * miss, axis=-1)

    def _least_squares(self, c: Array, old: Array, most: Array) -> tuple[Array, Array]:
        """Scale and minimum [n, G] of least weighted error for codes [n, G, g]; a minimum below 0 becomes 0.

        Args:
            old, most: [n, G], the present scale, which stays where these codes tell of none, and the size of the largest that is
                believed: codes that are nearly all the same leave a quotient of two rounding errors.
        """
        xp = array_namespace(self.w)
        w, v = self.w, self.v
        if self.scheme.symmetric:
            c = c - self.scheme.midpoint
            alone = _ratio(xp.sum(v * c * w, axis=-1), xp.sum(v * c * c, axis=-1), old, most)
            return alone, xp.zeros_like(old)
        total = self._total()
        c_mean, w_mean = xp.sum(v * c, axis=-1) / total, xp.sum(v * w, axis=-1) / total
        centred = c - c_mean[..., None]
        scale = _ratio(xp.sum(v * centred * w, axis=-1), xp.sum(v * centred * centred, axis=-1), old, most)
        scale = xp.where(scale > 0, scale, old)
        minimum = c_mean * scale - w_mean
        alone = _ratio(xp.sum(v * c * w, axis=-1), xp.sum(v * c * c, axis=-1), old, most)
        scale = xp.where((minimum < 0) & (alone > 0), alone, scale)
        return scale, xp.clip(minimum, 0, None)

    def _total(self) -> Array:
        """The sum of v [n, G], or 1 where it is 0."""
        xp = array_namespace(self.v)
        total = xp.sum(self.v, axis=-1)
        return xp.where(total > 0, total, xp.ones_like(total))


def _rounded(w: Array, scale: Array, middle: int, scheme: QuantScheme) -> Array:
    """round(w / scale) + middle, clamped, float32 [n, G, g] for scales [n, G].

    It is ``middle`` where the scale is 0, or so small that it has no inverse.
    """
    xp = array_namespace(w)
    none = xp.abs(scale) < _SMALLEST
    inverse = xp.where(none, xp.zeros_like(scale), 1 / xp.where(none, xp.ones_like(scale), scale))
    values = w * inverse[..., None]
    values += middle
    return round_to_codes(values, scheme)


def _ratio(above: Array, below: Array, otherwise: Array, most: Array) -> Array:
    """above / below [n, G], or ``otherwise`` where that is nothing or larger than ``most``."""
    xp = array_namespace(above)
    some = (below > 0) & (xp.abs(above) <= most * below)
    return xp.where(some, above, otherwise) / xp.where(some, below, xp.ones_like(below))
