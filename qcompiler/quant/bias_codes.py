"""Biases as int32 without a zero point, in steps of input scale times weight scale: what integer kernels add to their sums."""

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

LARGEST = 2.0**30
"""Of a bias in integers: half of what int32 holds, so that there is room for corrections and sums."""


def bias_codes(bias: Float, steps: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """The nearest codes; bias and steps [N].

    ``scales_with_room`` makes scales whose steps leave int32 room for them.
    """
    return _held(np.rint(bias / steps.astype(np.float64)))


def moved_codes(
    codes: npt.NDArray[np.int32], shift: Float, steps: Float
) -> tuple[npt.NDArray[np.int32], Float]:
    """Codes of the bias plus ``shift``, and what was really added: whole steps, as far as int32 goes. All [N]."""
    moved = _held(codes.astype(np.float64) + np.rint(shift / steps))
    return moved, (moved.astype(np.float64) - codes) * steps


def scales_with_room(bias: Float, x_scale: float, scales: Float) -> Float:
    """Weight scales, [N] or of all outputs [], so large that the bias in steps of both scales is at most ``LARGEST``.

    float32 numbers; those with room as they are. A step is a number that float32 holds.
    """
    least = np.maximum(np.abs(bias) / LARGEST, float(np.finfo(np.float32).tiny)) / x_scale
    if scales.ndim == 0:
        least = least.max(initial=0)
    wide: Float = np.maximum(scales, least).astype(np.float32).astype(np.float64)
    return wide


def coarser_codes(codes: npt.NDArray[np.int8], scales: Float, wide: Float) -> npt.NDArray[np.int8]:
    """Weight codes [N, ..] of the same weights in larger scales, [N] or []."""
    factor = (scales / wide).reshape(-1, *[1] * (codes.ndim - 1))
    return np.rint(codes * factor).astype(np.int8)


def _held(whole: Float) -> npt.NDArray[np.int32]:
    limits = np.iinfo(np.int32)
    return np.clip(whole, limits.min, limits.max).astype(np.int32)
