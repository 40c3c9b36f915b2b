"""Half-quadratic quantization (HQQ): scales and zero points of small p-norm of the error. Needs no data.

    argmin over s, z of   sum |w - Q(w)|^p,      p < 2,   Q(w) = (code - z) s        (Badri & Shaji 2023)

An auxiliary error e splits it into two problems that each have a closed form, solved in turn:

    e <- shrink(w - Q(w)),    shrink(x) = sign(x) max(0, |x| - p |x|^(p - 1) / beta)       what to give up
    s, z <- least squares of (code - z) s on w - e,  beta <- kappa beta                    what to fit

The paper starts from each group's full range and moves a float zero point alone. Kernels read whole zero
points, which that never moves by one, so we fit the scale too, and again once the zero point is rounded,
starting from the best of a few shrunk ranges. Errors are measured in steps of the scale: the paper's beta of 10
on plain weights (errors around 0.001) shrinks every error to 0, which leaves p without effect.

A step is kept, group by group, only where the p-norm falls and the squared error does not rise; the first that
is not kept ends the group. So no group is worse than rounded to nearest by either measure. Without the second
condition p < 1 runs away: it clips most of a group to store the many small weights exactly (on SmolLM2's linears,
int4 g64 asym, p = 0.7: three times the output error of rounding to nearest).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms import mse
from qcompiler.algorithms.arrays import Device
from qcompiler.algorithms.limits import check_at_least, check_share
from qcompiler.algorithms.rtn import quantize_rows
from qcompiler.errors import SchemeError
from qcompiler.quant.affine import (
    Array,
    offsets,
    range_to_scale,
    round_to_codes,
    store_scale,
    store_zero_point,
    to_groups,
)
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics

_SMALLEST = 1e-6  # steps of the scale: keeps |x|^(p - 1) finite where the error is 0


@dataclass(frozen=True, slots=True)
class HqqOptions:
    """How scales and zero points are fitted.

    Attributes:
        p: of the norm, more than 0, at most 2. Less than 1 forgives a few large errors for many small ones.
        steps: how many ranges are tried before, from the full one downward.
        shrink: the smallest of them, as a share of the full one.
        iterations: rounds at most; a group stops where it gains no more.
        beta: an error of more than (p / beta)^(1 / (2 - p)) steps of the scale is given up in part; with 1
            and p = 1 those of more than a step, which is what clipping leaves.
        kappa: what beta is multiplied by after each round.
        fit_scale: false leaves the scale of the starting range and moves the zero point alone, as the paper.
        device: where the maths runs.
    Raises:
        SchemeError: a number outside what it can be.
    """

    p: float = 1.0
    steps: int = 6
    shrink: float = 0.5
    iterations: int = 4
    beta: float = 1.0
    kappa: float = 1.01
    fit_scale: bool = True
    device: Device = "cpu"

    def __post_init__(self) -> None:
        check_at_least(self, steps=1, iterations=0, kappa=1)
        check_share(self, "shrink")
        if not 0 < self.p <= 2:
            raise SchemeError(f"p: {self.p} is no norm to fit by; give more than 0, at most 2")
        if not self.beta > 0:  # NaN too
            raise SchemeError(f"beta: {self.beta} must be positive; 1 is the default")


def quantize(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | None,
    scheme: QuantScheme,
    options: HqqOptions | None = None,
) -> AffineTensor:
    """The codes nearest to the weight, with scales and zero points of small p-norm of the error.

    Args:
        weight: [N, K] of any floating point type; it may be a view of a mapped file: it is read in blocks of
            rows.
        statistics: not used.
        scheme: how the weight will be stored. One scale for a whole tensor is left to mse's search.
        options: the norm, how long to fit, and where.
    Raises:
        SchemeError: the weight holds NaN or infinity.
    """
    if scheme.groups_rows:
        return quantize(weight.T, None, scheme.turned, options).turned
    options = options or HqqOptions()
    if scheme.granularity is Granularity.TENSOR:
        return mse.quantize(weight, None, scheme, mse.MseOptions(device=options.device))
    present = mse.channel_importance(None, weight.shape[1], scheme, options.device)
    return quantize_rows(
        weight, scheme, lambda rows: fit_rows(rows, present, scheme, options), options.device
    )


def fit_rows(
    rows: Array, present: Array, scheme: QuantScheme, options: HqqOptions
) -> tuple[Array, Array | None]:
    """Scales [n, G] and zero points (None when symmetric) of rows [n, K].

    Args:
        present: [1, G, g], 0 where a short group is filled up, otherwise the same everywhere.
    """
    xp = array_namespace(rows)
    fit = _Fit(to_groups(rows, scheme), present, scheme, options)
    lo, hi = xp.min(fit.weight, axis=-1), xp.max(fit.weight, axis=-1)
    search = mse.MseOptions(options.steps, options.shrink)
    # Float zero points start from whole ones too: zeros, of which many weights have more than their share, are then stored exactly.
    whole = replace(scheme, zero_point="int")
    fit.start(*range_to_scale(lo, hi, scheme))  # round to nearest, by which all others are judged
    if not scheme.has_float_zero_points:
        for candidate in mse.shrunk_scales(lo, hi, scheme, search):
            fit.offer(*candidate)
    else:
        centre, reach = (hi + lo) / 2, (hi - lo) / 2
        for share in mse.range_shares(scheme, search):
            for start in (
                range_to_scale(lo * share, hi * share, whole),
                range_to_scale(centre - reach * share, centre + reach * share, scheme),
            ):
                fit.offer_refitted(*start, options.beta)
    fit.restart()
    beta = options.beta
    for _ in range(options.iterations):
        fit.step(beta)
        if not bool(xp.any(fit.moving)):
            break
        beta *= options.kappa
    return fit.scale, fit.zero_point


class _Fit:
    """The best scale and zero point so far of each group, [n, G], and what they leave."""

    def __init__(self, weight: Array, present: Array, scheme: QuantScheme, options: HqqOptions) -> None:
        self.weight = weight  # float32 [n, G, g]
        self.present = present
        self.scheme = scheme
        self.options = options
        self.filled_up = not bool(present.all())

    def start(self, scale: Array, zero_point: Array | None) -> None:
        self.scale, self.zero_point = scale, zero_point
        _, error = self._rounded(scale, zero_point)
        self.norm, self.square = self._losses(error, scale)

    def offer(self, scale: Array, zero_point: Array | None) -> None:
        """Take over what is better, group by group."""
        xp = array_namespace(scale)
        _, error = self._rounded(scale, zero_point)
        self._keep(scale, zero_point, error, xp.ones_like(scale, dtype=xp.bool))

    def offer_refitted(self, scale: Array, zero_point: Array | None, beta: float) -> None:
        """Take over these, and what they come to after one round, where it is better."""
        xp = array_namespace(scale)
        codes, error = self._rounded(scale, zero_point)
        self._keep(scale, zero_point, error, xp.ones_like(scale, dtype=xp.bool))
        self.offer(*self._solved(scale, zero_point, codes, error, beta))

    def restart(self) -> None:
        """Every group moves, from its present codes."""
        xp = array_namespace(self.scale)
        self.codes, self.error = self._rounded(self.scale, self.zero_point)
        self.moving = xp.ones_like(self.scale, dtype=xp.bool)

    def step(self, beta: float) -> None:
        """One round, in the groups that still move."""
        scale, zero_point = self._solved(self.scale, self.zero_point, self.codes, self.error, beta)
        # Where a group stops here these are not its own, and not used any more.
        self.codes, self.error = self._rounded(scale, zero_point)
        self.moving = self._keep(scale, zero_point, self.error, self.moving)

    def _solved(
        self, scale: Array, zero_point: Array | None, codes: Array, error: Array, beta: float
    ) -> tuple[Array, Array | None]:
        """Scales and zero points of least squares for these codes, large errors given up."""
        xp = array_namespace(self.weight)
        target = self.weight
        if self.options.p < 2 or beta > 2:  # |x| - 2 |x| / beta: nothing of a square is given up before
            target = target - self._shrunk(error, beta) * scale[..., None]
        if zero_point is None:
            if not self.options.fit_scale:
                return scale, None
            return self._scale_for(codes - self.scheme.midpoint, target, scale), None
        count = xp.sum(self.present, axis=-1)
        code_mean = xp.sum(codes * self.present, axis=-1) / count
        target_mean = xp.sum(target * self.present, axis=-1) / count
        if self.options.fit_scale:
            scale = self._scale_for((codes - code_mean[..., None]) * self.present, target, scale)
        zero_point = store_zero_point(code_mean - target_mean / scale, self.scheme)
        if self.options.fit_scale and not self.scheme.has_float_zero_points:
            scale = self._scale_for((codes - zero_point[..., None]) * self.present, target, scale)
        return scale, zero_point

    def _keep(self, scale: Array, zero_point: Array | None, error: Array, where: Array) -> Array:
        """Take over what lowers the norm and does not raise the squares; where that was, bool [n, G]."""
        xp = array_namespace(scale)
        norm, square = self._losses(error, scale)
        better = where & (norm < self.norm) & (square <= self.square)
        self.norm = xp.where(better, norm, self.norm)
        self.square = xp.where(better, square, self.square)
        self.scale = xp.where(better, scale, self.scale)
        if zero_point is not None:
            self.zero_point = xp.where(better, zero_point, self.zero_point)
        return better

    def _shrunk(self, error: Array, beta: float) -> Array:
        """What to give up of each error, in steps."""
        xp = array_namespace(error)
        p = self.options.p
        kept = xp.abs(error)
        if (
            p == 1
        ):  # a power makes a round 1.3 times as long (32 ms, not 25, for 512 x 1536 on one core of an x86-64 server)
            kept -= 1 / beta
        else:
            kept += _SMALLEST
            kept -= (p / beta) * kept ** (p - 1)
        kept = xp.clip(kept, 0, None)
        kept *= xp.sign(error)
        return kept

    def _scale_for(self, centred: Array, target: Array, old: Array) -> Array:
        """s = <c t> / <c c> [n, G] of centred codes and target [n, G, g]; the old scale where there is nothing to fit."""
        xp = array_namespace(centred)
        across = xp.sum(centred * target, axis=-1)
        along = xp.sum(centred * centred, axis=-1)
        fits = (along > 0) & (xp.sign(across) == xp.sign(old))
        scale = xp.where(fits, across, old) / xp.where(fits, along, xp.ones_like(along))
        return store_scale(scale, self.scheme.scale_dtype)

    def _rounded(self, scale: Array, zero_point: Array | None) -> tuple[Array, Array]:
        """Codes, and the errors w - Q(w) in steps of the scale, Q(w) as it is stored; float32 [n, G, g] twice."""
        xp = array_namespace(scale)
        error = self.weight * (1.0 / scale)[..., None]
        error += float(self.scheme.midpoint) if zero_point is None else zero_point[..., None]
        codes = round_to_codes(xp.asarray(error, copy=True), self.scheme)
        error -= codes
        if zero_point is not None and self.scheme.has_float_zero_points:
            centre = self.scheme.stored_middle - zero_point
            error += (centre - offsets(scale, zero_point, self.scheme) / scale)[..., None]
            if self.filled_up:  # 0 is no code there
                error *= self.present
        return codes, error

    def _losses(self, error: Array, scale: Array) -> tuple[Array, Array]:
        """The p-norm to the p and the squared error of each group, [n, G] twice."""
        xp = array_namespace(error)
        p = self.options.p
        square = xp.sum(error * error, axis=-1) * (scale * scale)
        if p == 2:
            return square, square
        size = xp.abs(error)
        if p != 1:
            size = size**p
        return xp.sum(size, axis=-1) * xp.abs(scale) ** p, square
