"""Learn for each weight whether it is rounded down or up, by the error of the layer's output (AdaRound).

    minimise over V   tr(E H E^T) + regularization sum 1 - |2 h(V) - 1|^beta,     E = s (clip(floor(w / s + z) + h(V)) - z) - w
    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)                (Nagel et al. 2020, Up or Down?, equations 21 to 24)

with H = mean of x x^T, whose tr(E H E^T) is the mean squared error of the layer's output on the calibration data: the paper's objective
without the activation behind the layer. Adam (Kingma & Ba 2015) lowers it; for the first fifth of the iterations without the second term,
then with beta falling along a cosine, which drives every h to 0 or 1. Scales are those that mse finds. A row whose error is not below that
of mse's own rounding keeps that.

Errors are measured in steps of the scale and inputs by their mean square, so that learning rate and regularization mean the same in
every layer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms import mse
from qcompiler.algorithms.arrays import row_blocks
from qcompiler.algorithms.limits import check_at_least
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import GroupedStatistics, InputStatistics

ROWS = 1 << 20  # weights learned at once: some twelve float32 arrays of this size
WARM_UP = 0.2  # of the iterations, without regularization
BETAS = 20.0, 2.0  # from, to
STRETCH, SHIFT = 1.2, -0.1  # of the sigmoid, so that 0 and 1 are reached
MEMORY = 0.9, 0.999  # of Adam's means

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AdaroundOptions:
    """How long to learn, and how.

    Attributes:
        iterations: 0 leaves mse's rounding.
        learning_rate: of Adam.
        regularization: weight of the term that drives every h(V) to 0 or 1.
        steps, shrink, rounds: of the search for the scales, see MseOptions.
    Raises:
        SchemeError: a value that makes no sense.
    """

    iterations: int = 300
    learning_rate: float = 0.05
    regularization: float = 0.2
    steps: int = 8
    shrink: float = 0.4
    rounds: int = 2

    def __post_init__(self) -> None:
        check_at_least(self, iterations=0, regularization=0)
        if not self.learning_rate > 0:  # NaN too
            raise SchemeError(f"learning_rate: {self.learning_rate} must be positive; 0.05 is the default")
        mse.MseOptions(self.steps, self.shrink, self.rounds)  # refuses what it cannot search with

    @property
    def search(self) -> mse.MseOptions:
        """The search for the scales."""
        return mse.MseOptions(self.steps, self.shrink, self.rounds)


def quantize(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | GroupedStatistics | None,
    scheme: QuantScheme,
    options: AdaroundOptions | None = None,
) -> AffineTensor:
    """Codes whose output error is small together, each next to its weight.

    Args:
        weight: [N, K] of any floating point type; it may be a view of a mapped file: it is read in blocks of rows.
        statistics: with the Hessian, or those of groups; without, or where nothing was driven, this is mse.
        scheme: how the weight will be stored; groups of rows are left to mse.
        options: how long to learn.
    Raises:
        SchemeError: the weight holds NaN or infinity.
        CalibrationError: the Hessian does.
    """
    options = options or AdaroundOptions()
    plain = statistics if isinstance(statistics, InputStatistics) else None
    start = mse.quantize(weight, plain, scheme, options.search)
    hessian = None if statistics is None else statistics.hessian
    if hessian is None or not hessian.any() or not options.iterations or scheme.groups_rows:
        return start
    if not np.isfinite(hessian).all():
        raise CalibrationError("the Hessian holds NaN or infinity; check the calibration data")
    codes = start.codes  # nobody else has seen them, so they are written to
    if isinstance(statistics, GroupedStatistics):
        share = len(weight) // len(hessian)
        unit = max(1, ROWS // (share * weight.shape[1])) * share
        blocks = [slice(at, at + unit) for at in range(0, len(weight), unit)]
        parts = [hessian[block.start // share : block.stop // share] for block in blocks]
    else:
        blocks = list(row_blocks(weight, ROWS))
        parts = [hessian[None]] * len(blocks)
    for block, part in zip(blocks, parts, strict=True):
        codes[block] = _learned(_Rows.of(weight[block], start, block, part), options, scheme)
    return start


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows [G, n, K] that are learned together, G Hessians with n rows each.

    Attributes:
        exact: the weights in steps of their scales, from code 0 on.
        nearest: the codes that are there.
        step: the scales over the root of the mean of their squares in a row.
        hessian: [G, K, K] over the mean of its diagonal.
    """

    exact: Float
    nearest: Float
    step: Float
    hessian: Float

    @classmethod
    def of(cls, weight: npt.NDArray[Any], start: AffineTensor, block: slice, hessian: Float) -> "_Rows":
        groups, k = hessian.shape[:2]
        rows = slice(None) if start.scheme.granularity is Granularity.TENSOR else block
        column = np.arange(k) // start.scheme.group_width(k)
        scale = np.broadcast_to(start.scale[rows][:, column], weight.shape)
        zero: Any = start.scheme.midpoint
        if start.zero_point is not None:
            zero = start.zero_point[rows][:, column].astype(np.float32)
        exact = weight.astype(np.float32) / scale + zero
        size = np.sqrt(np.square(scale.astype(np.float64)).mean(axis=1, keepdims=True))  # 1e-38 has a square
        mean = np.diagonal(hessian, axis1=1, axis2=2).mean(axis=1)[:, None, None]
        shape = (groups, -1, k)
        return cls(
            exact.reshape(shape),
            start.codes[block].astype(np.float32).reshape(shape),
            (scale / size).astype(np.float32).reshape(shape),
            (hessian / np.where(mean > 0, mean, 1)).astype(np.float32),
        )

    def errors(self, codes: Float) -> Float:
        """Of the layer's output, each row's: [G, n, 1]."""
        e = (codes - self.exact) * self.step
        found: Float = np.sum((e @ self.hessian) * e, axis=2, keepdims=True)
        return found


def _learned(rows: _Rows, options: AdaroundOptions, scheme: QuantScheme) -> npt.NDArray[np.uint8]:
    """Codes [rows, K]."""
    low = np.floor(rows.exact)
    share = np.clip((rows.exact - low - SHIFT) / STRETCH, 1e-4, 1 - 1e-4)
    v = np.log(share / (1 - share))  # h(V) is the weight itself
    mean, square = np.zeros_like(v), np.zeros_like(v)
    for iteration in range(options.iterations):
        gradient = _gradient(rows, low, v, scheme.max_code, _beta(iteration / options.iterations), options)
        mean += (1 - MEMORY[0]) * (gradient - mean)
        square += (1 - MEMORY[1]) * (np.square(gradient) - square)
        unbiased = np.sqrt(square / (1 - MEMORY[1] ** (iteration + 1))) + 1e-8
        v -= options.learning_rate / (1 - MEMORY[0] ** (iteration + 1)) * mean / unbiased
    found = np.clip(low + (v >= 0), 0, scheme.max_code)
    better = rows.errors(found) < rows.errors(rows.nearest)
    chosen = np.where(better, found, rows.nearest)
    return chosen.reshape(-1, chosen.shape[2]).astype(np.uint8)


def _gradient(
    rows: _Rows, low: Float, v: Float, top: int, beta: float | None, options: AdaroundOptions
) -> Float:
    """With respect to V; ``beta`` None: without regularization."""
    sigmoid = 1 / (1 + np.exp(-v))
    stretched = STRETCH * sigmoid + SHIFT
    h = np.clip(stretched, 0, 1)
    codes = np.clip(low + h, 0, top)
    slope = 2 * ((codes - rows.exact) * rows.step @ rows.hessian) * rows.step
    slope *= (low + h >= 0) & (low + h <= top)
    if beta is not None:
        away = 2 * h - 1
        slope -= options.regularization * 2 * beta * np.abs(away) ** (beta - 1) * np.sign(away)
    found: Float = slope * STRETCH * sigmoid * (1 - sigmoid) * (stretched == h)
    return found


def _beta(done: float) -> float | None:
    """After a share of the iterations."""
    if done < WARM_UP:
        return None
    first, last = BETAS
    return last + (first - last) / 2 * (1 + float(np.cos(np.pi * (done - WARM_UP) / (1 - WARM_UP))))
