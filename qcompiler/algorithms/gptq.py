"""Round column after column, each time letting the columns still to come make up for the error (GPTQ).

    minimise  tr((W - Q) H (W - Q)^T),      H = mean of x x^T

Column j is rounded; the error e = w_j - q_j is spread over the columns after it in proportion to row j of U,
H^-1 = U^T U (Frantar et al. 2023, equations 2 and 3). Columns are taken by falling mean square of their
channel, with every group's scale fixed beforehand, so nothing has to be permuted at run time.

Where the paper takes each group's full range, the scales are those that mse finds. Afterwards codes and
scales are refined in turn: each code is set to the best one given all others (cyclic coordinate descent),
then each row's scales to their least squares solution under H.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms import gptq_in_groups, mse
from qcompiler.algorithms.arrays import BLOCK, Device, fetch, place, row_blocks
from qcompiler.algorithms.hessian import DAMPING, Factor, factor
from qcompiler.errors import SchemeError
from qcompiler.quant.affine import Array, round_to_codes, store_scale, store_values, to_groups
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import GroupedStatistics, InputStatistics

COLUMNS = 128  # rounded before the rest of the matrix is brought up to date

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GptqOptions:
    """How columns are rounded.

    Attributes:
        damping: share of the Hessian's mean diagonal that is added to its diagonal.
        refine: rounds of coordinate descent on the codes and least squares on the scales.
        steps, shrink, rounds: of the search for the scales, see MseOptions.
        device: where the maths runs.
    Raises:
        SchemeError: a value that makes no sense.
    """

    damping: float = DAMPING
    refine: int = 2
    steps: int = 8
    shrink: float = 0.4
    rounds: int = 2
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 100:
            raise SchemeError(f"damping: {self.damping}; must be positive, {DAMPING} is usual")
        if self.refine < 0:
            raise SchemeError(f"refine: {self.refine}; must be 0 or more")
        mse.MseOptions(self.steps, self.shrink, self.rounds)  # refuses what it cannot search with

    @property
    def search(self) -> mse.MseOptions:
        """The search for the scales."""
        return mse.MseOptions(self.steps, self.shrink, self.rounds, device=self.device)


def quantize(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | GroupedStatistics | None,
    scheme: QuantScheme,
    options: GptqOptions | None = None,
) -> AffineTensor:
    """Codes whose output error is small together, not each for itself.

    Args:
        weight: [N, K] of any floating point type; it may be a view of a mapped file: it is read in blocks of
            rows, which do not influence one another.
        statistics: with the Hessian; without one, or where nothing was driven, this is mse. With those of groups see
            ``gptq_in_groups``, whose columns keep their order.
        scheme: how the weight will be stored.
        options: damping, refinement, and where the maths runs.
    Raises:
        SchemeError: the weight holds NaN or infinity.
        CalibrationError: the Hessian does.
    """
    options = options or GptqOptions()
    if isinstance(statistics, GroupedStatistics):
        return gptq_in_groups.quantize(
            weight, statistics, scheme, options.search, options.damping, options.refine
        )
    if statistics is None or statistics.hessian is None or not np.diagonal(statistics.hessian).any():
        return mse.quantize(weight, statistics, scheme, options.search)
    return round_together(weight, statistics, scheme, options)[0]


def round_together(
    weight: npt.NDArray[Any],
    statistics: InputStatistics,
    scheme: QuantScheme,
    options: GptqOptions,
    mask: npt.NDArray[np.bool_] | None = None,
) -> tuple[AffineTensor, Float | None]:
    """Rounds with the scales that mse finds, then refines.

    Args:
        weight: [N, K] of any floating point type.
        statistics: with a Hessian that is not all 0.
        mask: bool [N, K], the weights that are kept as floats: 0 for the search, and their codes mean 0.
    Returns:
        Codes and scales; with a mask what the kept weights should be, float32 [N, K], numbers that scheme.scale_dtype holds, 0 elsewhere.
    Raises:
        SchemeError: the weight holds NaN or infinity.
        CalibrationError: the Hessian does, or there is none.
    """
    plan = factor(statistics, options.damping, options.device)
    assert statistics.hessian is not None  # without one there is no factor
    start = mse.quantize(
        weight if mask is None else np.where(mask, 0, weight), statistics, scheme, options.search
    )
    codes, scale = start.codes, start.scale  # nobody else has seen these, so they are written to
    kept = None if mask is None else np.zeros(weight.shape, np.float32)
    hessian = _placed(_damped(statistics.hessian, plan.damping), options.device)
    for rows in row_blocks(weight):
        target = _placed(np.asarray(weight[rows], np.float32).T, options.device)
        grid = Grid.of(start, rows, options.device)
        loose = None
        if mask is not None:
            where = _placed(mask[rows].T, options.device)
            loose = Loose(where > 0, where * 0)
        rounded = round_columns(target, grid, plan, loose)
        for _ in range(options.refine):
            if scheme.granularity is not Granularity.TENSOR:
                grid = refit(target if loose is None else target - loose.values, rounded, grid, hessian)
            rounded = descend(target, rounded, grid, hessian, loose)
        codes[rows] = fetch(rounded).T
        if scheme.granularity is not Granularity.TENSOR:
            scale[rows] = fetch(grid.scale).T
        if kept is not None and loose is not None:
            kept[rows] = fetch(loose.values).T
    return AffineTensor(scheme, codes, scale, start.zero_point), kept


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Scales and zero points of n rows, laid out so that what a column needs is contiguous.

    Attributes:
        scale: float32 [G, n]; [1, 1] for a tensor.
        zero_point: float32 of that shape; the midpoint throughout where the scheme is symmetric.
        group: the group of each column, K of them.
    """

    scheme: QuantScheme
    scale: Array
    zero_point: Array
    group: npt.NDArray[np.int64]

    @classmethod
    def of(cls, tensor: AffineTensor, rows: slice, device: Device) -> "Grid":
        k = tensor.shape[1]
        scheme = tensor.scheme
        rows = slice(None) if scheme.granularity is Granularity.TENSOR else rows
        scale = _placed(tensor.scale[rows].T, device)
        stored = (
            np.full(tensor.scale[rows].shape, scheme.midpoint)
            if tensor.zero_point is None
            else tensor.zero_point[rows]
        )
        return cls(scheme, scale, _placed(stored.T, device), np.arange(k) // scheme.group_width(k))


@dataclass(frozen=True, slots=True, eq=False)
class Loose:
    """Weights that are stored as floats of their own; their codes are the zero point, so they mean 0 there.

    Attributes:
        mask: bool [K, n], which.
        values: float32 [K, n], their numbers as scheme.scale_dtype holds them, 0 elsewhere; rounding and descent write them.
    """

    mask: Array
    values: Array


def round_columns(target: Array, grid: Grid, plan: Factor, loose: Loose | None = None) -> Array:
    """Codes of W^T [K, n], each column's error spread over those after it in the plan's order; float32 whole numbers [K, n].

    What is ``loose`` takes up the errors of the columns before it; its own is what its type does not hold.

    Args:
        target: W^T, float32 [K, n].
    """
    xp = array_namespace(target)
    spread = _like(plan.spread, target)
    left = target[plan.order]  # a copy: what is still to be rounded, errors of earlier columns taken up
    codes, errors = xp.empty_like(left), xp.empty_like(left)
    inverse = 1.0 / grid.scale
    k = left.shape[0]
    for start in range(0, k, COLUMNS):
        stop = min(start + COLUMNS, k)
        for j in range(start, stop):
            g = int(grid.group[plan.order[j]])
            exact = left[j]
            if j > start:
                exact -= spread[j, start:j] @ errors[start:j]
            codes[j] = round_to_codes(exact * inverse[g] + grid.zero_point[g], grid.scheme)
            errors[j] = exact - (codes[j] - grid.zero_point[g]) * grid.scale[g]
            if loose is not None:
                free = loose.mask[plan.order[j]]
                held = store_values(exact, grid.scheme.scale_dtype)
                loose.values[plan.order[j]] = held * free
                codes[j] = xp.where(free, grid.zero_point[g], codes[j])
                errors[j] = xp.where(free, exact - held, errors[j])
        left[stop:] -= spread[stop:, start:stop] @ errors[start:stop]
    back = xp.empty_like(codes)
    back[plan.order] = codes
    return back


def descend(target: Array, codes: Array, grid: Grid, hessian: Array, loose: Loose | None = None) -> Array:
    """One sweep over the columns, each code (and loose number) set to the best given all the others; the output error never rises.

    Args:
        target, codes: [K, n].
        hessian: [K, K], positive definite.
    """
    xp = array_namespace(target)
    codes = xp.asarray(codes, copy=True)
    error = _values(codes, grid) - target
    if loose is not None:
        error += loose.values
    slope = hessian @ error  # half the gradient with respect to Q^T
    k = codes.shape[0]
    for start in range(0, k, COLUMNS):
        stop = min(start + COLUMNS, k)
        moved = xp.zeros_like(codes[start:stop])
        for j in range(start, stop):
            g = int(grid.group[j])
            here = slope[j]
            if j > start:
                here = here + hessian[j, start:j] @ moved[: j - start]
            # Two divisions: the product of a small Hessian and the smallest scale (a row of zeros has it) is 0 in float32.
            best = round_to_codes(codes[j] - here / hessian[j, j] / grid.scale[g], grid.scheme)
            if loose is not None:
                best = xp.where(loose.mask[j], codes[j], best)
            moved[j - start] = (best - codes[j]) * grid.scale[g]
            if loose is not None:
                # The nearest number to the best: what it costs grows with the distance to that alone.
                held = store_values(loose.values[j] - here / hessian[j, j], grid.scheme.scale_dtype)
                held = xp.where(loose.mask[j], held, loose.values[j])
                moved[j - start] += held - loose.values[j]
                loose.values[j] = held
            codes[j] = best
        slope += hessian[:, start:stop] @ moved
    return codes


def refit(target: Array, codes: Array, grid: Grid, hessian: Array) -> Grid:
    """The scales of least output error for these codes, row by row; a row that would gain nothing keeps its own.

    With c the centred codes, the error of a row is  s^T A s - 2 b^T s + const,  A_gh = c_g^T H c_h,  b_g = c_g^T H w.
    """
    xp = array_namespace(target)
    centred = (codes - grid.zero_point[grid.group]).T  # [n, K]
    pulled = (hessian @ target).T
    scale = xp.empty_like(grid.scale)
    groups = grid.scale.shape[0]
    for rows in row_blocks(centred, max(BLOCK // max(groups, 1) ** 2 * centred.shape[1], centred.shape[1])):
        scale[:, rows] = _least_squares(
            centred[rows], pulled[rows], grid.scale[:, rows].T, grid.scheme, hessian
        ).T
    return Grid(grid.scheme, scale, grid.zero_point, grid.group)


def _least_squares(c: Array, pulled: Array, old: Array, scheme: QuantScheme, hessian: Array) -> Array:
    """New scales [n, G] from centred codes and H w [n, K]."""
    xp = array_namespace(c)
    width, k = scheme.group_width(c.shape[1]), c.shape[1]
    b = xp.sum(to_groups(c * pulled, scheme), axis=-1)
    a = xp.stack(
        [
            xp.sum(to_groups((c[:, at : at + width] @ hessian[at : at + width]) * c, scheme), axis=-1)
            for at in range(0, k, width)
        ],
        axis=1,
    )  # [n, G, G]
    diagonal = xp.linalg.diagonal(a)
    groups = a.shape[1]
    # A group whose codes are all 0 has no say: its row of A is empty, and it keeps its scale.
    idle = diagonal <= 0
    pivots = xp.where(idle, xp.ones_like(diagonal), diagonal * 1e-5)
    solvable = xp.asarray(a, copy=True)
    solvable[:, range(groups), range(groups)] += pivots
    new = xp.linalg.solve(solvable, b[..., None])[..., 0]
    new = xp.where(
        idle | (xp.sign(new) != xp.sign(old)), old, new
    )  # the codes were chosen for the sign that is there
    new = store_scale(new, scheme.scale_dtype)

    def loss(s: Array) -> Array:
        return xp.sum(s * ((a @ s[..., None])[..., 0] - 2 * b), axis=-1)[:, None]

    return xp.where(loss(new) < loss(old), new, old)


def _values(codes: Array, grid: Grid) -> Array:
    """W^T that codes [K, n] mean."""
    return (codes - grid.zero_point[grid.group]) * grid.scale[grid.group]


def _damped(hessian: Float, damping: float) -> Float:
    damped = hessian.copy()
    damped[np.diag_indices_from(damped)] += damping * float(np.diagonal(hessian).mean())
    return damped


def _placed(array: npt.NDArray[Any], device: Device) -> Array:
    """Contiguous float32; NumPy on a CPU, where torch takes longer to start one column's few operations than they take.

    round_columns of 576 x 1536 on one core of an x86-64 server: 0.06 s with NumPy, 0.16 s with torch.
    """
    return np.ascontiguousarray(array, np.float32) if device == "cpu" else place(array, device)


def _like(array: Float, other: Array) -> Array:
    return array if isinstance(other, np.ndarray) else place(array, other.device.type)
