"""Mean and variance of a normal variable that is clipped, as a ReLU does with what a BatchNormalization makes.

Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction*, appendix C. For z ~ N(m, d^2),
x = min(max(z, a), b), A = (a - m) / d, B = (b - m) / d, p the density of N(0, 1) and Q its upper tail, written with what is above a bound,
so that little is lost where m is far from it:

    E[max(z - a, 0)]   = d (p(A) - A Q(A)) = L(A)                 E[x]         = a + L(A) - L(B)
    E[max(z - a, 0)^2] = d^2 ((1 + A^2) Q(A) - A p(A)) = S(A)     E[(x - a)^2] = S(A) - S(B) - 2 (b - a) L(B)
"""

import math

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


def clipped_normal(mean: Float, deviation: Float, low: float, high: float) -> tuple[Float, Float]:
    """Mean and variance behind the clipping.

    Args:
        mean, deviation: of the normal variables, one shape [..]; the deviation is 0 or more.
        low, high: what they are clipped to; -inf and inf clip nothing.
    Returns:
        [..] each.
    Raises:
        ValueError: low is above high.
    """
    if not low <= high:
        raise ValueError(f"nothing lies between {low} and {high}")
    if low == -math.inf:
        if high == math.inf:
            return mean.astype(np.float64), np.square(deviation)
        found, variance = clipped_normal(-mean, deviation, -high, math.inf)
        return -found, variance
    first, second = _above(low, mean, deviation)
    if high < math.inf:
        over, over_squared = _above(high, mean, deviation)
        first, second = first - over, second - over_squared - 2 * (high - low) * over
    return low + first, np.maximum(second - np.square(first), 0)


def _above(bound: float, mean: Float, deviation: Float) -> tuple[Float, Float]:
    """E[max(z - bound, 0)], and of its square."""
    spread = np.where(deviation > 0, deviation, 1)
    at = (bound - mean) / spread
    # NumPy has no error function; erfc is exact far out too.
    flat = [math.erfc(value / math.sqrt(2)) / 2 for value in at.reshape(-1).tolist()]
    tail = np.array(flat, np.float64).reshape(at.shape)
    density = np.exp(-np.square(np.clip(at, -40, 40)) / 2) / math.sqrt(2 * math.pi)
    first = spread * (density - at * tail)
    second = np.square(spread) * ((1 + np.square(at)) * tail - at * density)
    plain = np.maximum(mean - bound, 0)
    return np.where(deviation > 0, first, plain), np.where(deviation > 0, second, np.square(plain))
