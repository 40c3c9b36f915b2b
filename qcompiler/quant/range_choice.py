"""Which range the codes of an activation should cover, from a histogram of it: percentile, entropy (KL divergence), squared error.

A wider range clips less and rounds more coarsely. The searches shrink the ends of what was seen towards 0, symmetrically or one after the
other, and keep the range whose cost is least; on a tie the wider.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from qcompiler.quant.histogram import Bins
from qcompiler.quant.ranges import Range, code_limits

STEPS = 4  # tried ends lie 2^(1/4) apart at first, then at so many places between the neighbours of the best
HALVINGS = 8  # down to 1/256 of what was seen: there a histogram of 2048 bins still has some
LEAST_INSIDE = 0.5  # of all numbers: of fewer, what P has in its outermost bins Q has for nothing
ROUNDS = 4  # of one end after the other; two are the rule


def percentile_range(bins: Bins, percentile: float, symmetric: bool) -> Range:
    """The range that holds ``percentile`` percent: as many are cut off at either end, or, symmetric, those largest in size.

    Inside a bin numbers count as spread evenly, so that an end is within a bin's width of the percentile of the numbers themselves.
    """
    kept = percentile / 100
    if symmetric:
        return _within(bins, -_quantile(bins.magnitudes(), kept), _quantile(bins.magnitudes(), kept))
    return Range(_quantile(bins, (1 - kept) / 2), _quantile(bins, (1 + kept) / 2))


def entropy_range(bins: Bins, bits: int, symmetric: bool) -> Range:
    """The range whose rounded distribution Q tells most about the seen one P: least KL(P || Q) = sum_i P_i log(P_i / Q_i).

    Migacz 2017 (8-bit Inference with TensorRT, GTC): for each candidate, P is the histogram inside, with what lies outside added to the
    outermost bins; Q spreads what each code holds (without what lies outside) evenly over its bins that are not empty. Here

    - codes are those of the real scale and zero point, and with ``symmetric`` False each end moves alone: Migacz has the histogram of |x|;
    - the bin that holds 0 counts no more than its neighbours: 0 is held exactly by every range, and a Relu's zeros say nothing;
    - a range that holds less than half of the numbers is none: of numbers that are few different ones, its P and Q are alike;
    - an outermost bin that has only what lies outside counts in Q as if it held one number: Migacz leaves Q_i = 0 < P_i open.

    With as many codes as bins (16 bits) nothing is gained by clipping, and the range is all that was seen.
    """
    seen = _even_zero(bins.magnitudes() if symmetric else bins)
    return _least(lambda found: _divergence(seen, found, bits, symmetric), bins, symmetric)


def mse_range(bins: Bins, bits: int, symmetric: bool) -> Range:
    """The range with the least sum of (x - Q(x))^2, Q rounding to the nearest code and clipping.

    Inside a bin numbers count as spread evenly, over which the error is integrated exactly, whether steps are wider than bins or narrower.
    """
    edges = bins.edges()
    return _least(lambda found: _squared_error(bins, edges, found, bits, symmetric), bins, symmetric)


def _quantile(bins: Bins, share: float) -> float:
    below = np.concatenate([[0], np.cumsum(bins.counts)])
    return float(np.interp(share * float(below[-1]), below, bins.edges()))


def _least(cost: Callable[[Range], float], bins: Bins, symmetric: bool) -> Range:
    """Of the ranges inside what was seen the one of least cost, by searches along one end at a time."""
    lowest, highest = min(bins.lowest, 0.0), max(bins.highest, 0.0)
    if symmetric:
        size = max(-lowest, highest)
        size = _along(lambda end: cost(_within(bins, -end, end)), size)
        return _within(bins, -size, size)
    for _ in range(ROUNDS):
        before = Range(lowest, highest)
        if highest > 0:
            highest = _along(partial(_with_highest, cost, lowest), max(bins.highest, 0.0))
        if lowest < 0:
            lowest = _along(partial(_with_lowest, cost, highest), min(bins.lowest, 0.0))
        if Range(lowest, highest) == before or bins.lowest >= 0 or bins.highest <= 0:
            break
    return _within(bins, lowest, highest)


def _with_highest(cost: Callable[[Range], float], lowest: float, highest: float) -> float:
    return cost(Range(lowest, highest))


def _with_lowest(cost: Callable[[Range], float], highest: float, lowest: float) -> float:
    return cost(Range(lowest, highest))


def _along(cost: Callable[[float], float], end: float) -> float:
    """The end of least cost between 0 and ``end``: by quarters of octaves, then evenly between the two beside the best."""
    ratios = np.exp2(-np.arange(HALVINGS * STEPS + 1) / STEPS)
    best = _first_least(cost, end * ratios)
    at = int(np.flatnonzero(end * ratios == best)[0])
    above, below = end * ratios[max(at - 1, 0)], end * ratios[min(at + 1, len(ratios) - 1)]
    return _first_least(cost, np.concatenate([[best], np.linspace(above, below, 2 * STEPS + 1)]))


def _first_least(cost: Callable[[float], float], ends: npt.NDArray[np.float64]) -> float:
    return float(ends[int(np.argmin([cost(float(end)) for end in ends]))])


def _within(bins: Bins, lowest: float, highest: float) -> Range:
    """What was seen of a range that holds 0."""
    return Range(max(lowest, min(bins.lowest, highest)), min(highest, max(bins.highest, lowest)))


def _squared_error(
    bins: Bins, edges: npt.NDArray[np.float64], found: Range, bits: int, symmetric: bool
) -> float:
    scale, zero_point = found.scale_and_zero_point(bits, True, symmetric)
    first, last = code_limits(bits, True)
    s = float(scale)
    lowest, highest = s * (first + symmetric - zero_point), s * (last - zero_point)
    # The integral of (t - Q(t))^2 from 0 to x: s^3 / 12 for each whole step, r^3 / 3 for the rest of it and for what is clipped.
    inside = np.clip(edges, lowest, highest)
    steps = np.rint(inside / s)
    rest, clipped = inside - steps * s, edges - inside
    # Written out: NumPy's power of 3 takes 49 times as long (4096 numbers).
    integral = steps * (s**3 / 12) + (rest * rest * rest + clipped * clipped * clipped) / 3
    widths = np.diff(edges)
    # A last bin that holds its first number alone, as many as there may be (Clip), has no width: its error is that number's.
    mean = np.square(edges[:-1] - steps[:-1] * s)
    np.divide(np.diff(integral), widths, out=mean, where=widths > 0)
    return float(mean @ bins.counts)


def _even_zero(bins: Bins) -> Bins:
    """The histogram with no more numbers in the bin that begins with 0 than in the fuller one beside it."""
    at = -bins.first
    if not 0 <= at < len(bins.counts) or len(bins.counts) == 1:
        return bins
    counts = bins.counts.copy()
    beside = [counts[i] for i in (at - 1, at + 1) if 0 <= i < len(counts)]
    counts[at] = min(counts[at], max(beside))
    return Bins(bins.first, bins.exponent, counts, bins.lowest, bins.highest)


def _divergence(bins: Bins, found: Range, bits: int, symmetric: bool) -> float:
    """KL(P || Q) in nats; of |x| where the range is symmetric."""
    scale, _ = found.scale_and_zero_point(bits, True, symmetric)
    width = np.ldexp(1.0, bins.exponent)
    centers = (bins.first + np.arange(len(bins.counts)) + 0.5) * width
    lowest, highest = (0.0, max(-found.lowest, found.highest)) if symmetric else (found.lowest, found.highest)
    inside = np.flatnonzero((centers >= lowest - width / 2) & (centers <= highest + width / 2))
    if not len(inside):
        return float("inf")
    own = bins.counts[inside].astype(np.float64)
    if own.sum() < LEAST_INSIDE * bins.counts.sum():
        return float("inf")
    p = own.copy()
    p[0] += bins.counts[: inside[0]].sum()
    p[-1] += bins.counts[inside[-1] + 1 :].sum()
    own[[0, -1]] = np.maximum(own[[0, -1]], np.minimum(p[[0, -1]], 1))
    codes = np.rint(centers[inside] / float(scale)).astype(np.int64)
    _, codes = np.unique(codes, return_inverse=True)
    mass, filled = np.bincount(codes, own), np.bincount(codes, own > 0)
    q = np.where(own > 0, (mass / np.maximum(filled, 1))[codes], 0.0)
    p, q = p / p.sum(), q / q.sum()
    some = p > 0
    return float(np.sum(p[some] * np.log(p[some] / q[some])))
