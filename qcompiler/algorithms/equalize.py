"""The channel scales of least expected rounding error, without rounding anything: a smooth, convex problem.

In a group with step d, the square of a weight's error is d^2 / 12 on average, independently of the others,
and d is the group's range over the number of codes. With the scale s = exp(u) the expected output error is,
up to a constant,

    f(u) = sum over groups g of  (sum_{k in g} h_k e^{-2 u_k})  (sum_n r_ng(u)^2),      h = diag(H)

where r_ng = (sum_{k in g} |w_nk e^{u_k}|^p)^{1/p} is a smooth stand-in for the group's largest scaled weight.
f is made of products and positive powers of sums of powers of e^u (a generalized posynomial): log f is convex
in u, so descent from u = 0 finds the minimum. p = 8: with 4 the error is 3 % larger on SmolLM2, with 12 the
same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import Device, fetch, map_in_threads, place
from qcompiler.quant.affine import Array, to_groups
from qcompiler.quant.scheme import QuantScheme

_POWER = 8
_RATE = 0.1  # of the first step, in u; falls to 0 along a half cosine
_LIMIT = 4.0  # |u|: scales between 1/55 and 55
_FLOOR = (
    1e-5  # the least a channel counts, relative to the mean: other data may drive what calibration did not
)

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What f needs of one weight.

    Attributes:
        shape: [G, n, g] powers |w_nk / largest_ng|^p.
        largest: [G, n, 1] largest^2 of each group in steps of the codes, times the rows that it stands for.
        importance: [G, g], 0 where a short group is filled up.
    """

    shape: Array
    largest: Array
    importance: Array


def equalize(
    samples: Sequence[npt.NDArray[Any]],
    shares: Sequence[float],
    importance: npt.NDArray[Any],
    schemes: Sequence[QuantScheme],
    tie: npt.NDArray[np.integer[Any]] | None,
    iterations: int,
    device: Device,
) -> Float:
    """The scale [K] at the minimum of f, summed over the weights.

    Args:
        samples: rows of each weight, float32 [n_i, K].
        shares: how many rows of the weight each row of its sample stands for.
        importance: mean square of each input channel, [K].
        schemes: how each weight will be stored; one scale for a whole tensor counts as one for each row.
        tie: whole numbers [K]; channels with the same number get the same scale.
        iterations: steps of the descent (Adam, Kingma & Ba 2015).
        device: where the maths runs.
    """
    k = importance.shape[0]
    h = np.maximum(importance, 0).astype(np.float32)
    h = h / max(float(h.mean()), 1e-30) + np.float32(_FLOOR)
    parts = [
        _part(place(sample, device), share, place(h[None], device), scheme)
        for sample, share, scheme in zip(samples, shares, schemes, strict=True)
    ]
    group = np.arange(k) if tie is None else np.unique(tie, return_inverse=True)[1]

    def descend(start: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        u, first, second = start, np.zeros_like(start), np.zeros_like(start)
        for step in range(iterations):
            slope = np.bincount(group, weights=_slope(parts, u[group].astype(np.float32), device))
            first = 0.9 * first + 0.1 * slope
            second = 0.95 * second + 0.05 * slope * slope
            mean, spread = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.95 ** (step + 1))
            rate = _RATE * 0.5 * (1 + np.cos(np.pi * step / iterations))
            u = np.clip(u - rate * mean / (np.sqrt(spread) + 1e-12), -_LIMIT, _LIMIT)
        return u

    # One item: its many small operations run on one thread each, see map_in_threads.
    (u,) = map_in_threads(descend, [np.zeros(int(group.max()) + 1)], device)
    return np.exp(u[group]).astype(np.float32)


def _part(sample: Array, share: float, h: Array, scheme: QuantScheme) -> _Part:
    xp = array_namespace(sample)
    magnitude = xp.abs(to_groups(sample, scheme))
    largest = xp.max(magnitude, axis=-1)[..., None]
    magnitude /= xp.where(largest > 0, largest, xp.ones_like(largest))
    step = largest * (share**0.5 / scheme.max_code)
    return _Part(
        xp.asarray(xp.permute_dims(magnitude**_POWER, (1, 0, 2)), copy=True),
        xp.permute_dims(step * step, (1, 0, 2)),
        to_groups(h, scheme)[0],
    )


def _slope(parts: Sequence[_Part], u: Float, device: Device) -> npt.NDArray[np.float64]:
    """The gradient of log f, [K]."""
    k = u.shape[0]
    total, slope = 0.0, np.zeros(k)
    for part in parts:
        xp = array_namespace(part.shape)
        groups, width = (int(size) for size in part.importance.shape)
        padded = np.zeros(groups * width, np.float32)
        padded[:k] = u
        v = xp.reshape(place(padded, device), (groups, width))
        grown = xp.exp(_POWER * v)[..., None]  # [G, g, 1]
        driven = part.importance * xp.exp(-2 * v)  # [G, g]
        powers = part.shape @ grown  # [G, n, 1], r^p over largest^p
        ranges = part.largest * powers ** (2 / _POWER)  # [G, n, 1], r^2
        noise, energy = xp.sum(driven, axis=-1)[:, None], xp.sum(ranges[..., 0], axis=-1)[:, None]
        pull = ranges / xp.where(powers > 0, powers, xp.ones_like(powers))  # d r^2 / d powers, times p / 2
        across = xp.permute_dims(pull, (0, 2, 1)) @ part.shape  # [G, 1, g]
        gradient = 2 * noise * across[:, 0, :] * grown[..., 0] - 2 * driven * energy
        total += float(xp.sum(noise * energy))
        slope += fetch(xp.reshape(gradient, (-1,)))[:k]
    return slope / total if total > 0 else slope
