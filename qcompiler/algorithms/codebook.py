"""rtn and mse for weights of a codebook: the nearest entry of the table, scales that cover each block or have the least error.

    scale = max |w|,  code = argmin |table[code] - w / scale|          (QLoRA, Dettmers et al. 2023, equation 2)
    argmin over scale of   sum_k h_k (w_k - table[code_k] scale)^2     (searched: shrunk ranges, then s = <h w t> / <h t t>)

Every step of the search is kept, block by block, only where the error falls. With double quantization the scales are found first, stored
in 8 bits, and the codes are the nearest ones for what is stored.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import Device, fetch, place
from qcompiler.algorithms.mse import MseOptions, relative_squares
from qcompiler.algorithms.rtn import RtnOptions
from qcompiler.algorithms.sweep import sweep_rows
from qcompiler.quant.affine import Array, store_scale
from qcompiler.quant.codebook import (
    CodebookTensor,
    block_scale,
    double_quantize,
    from_blocks,
    nearest_codes,
    nearest_values,
    to_blocks,
)
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.statistics import InputStatistics

FindScale = Callable[[Array], Array]
"""Scales [B] for the blocks of float32 rows [n, K]."""
Quantizer = Callable[..., Any]


def beside(affine: Quantizer, codebook: Quantizer, float8: Quantizer | None = None) -> Quantizer:
    """One quantizer of them: ``codebook`` where the scheme has a table, ``float8`` where it has floats, else ``affine``."""

    def quantize(
        weight: npt.NDArray[Any], statistics: InputStatistics | None, scheme: QuantScheme, options: Any = None
    ) -> Any:
        chosen = codebook if scheme.is_codebook else affine
        if scheme.is_float8 and float8 is not None:
            chosen = float8
        return chosen(weight, statistics, scheme, options)

    return quantize


def round_to_nearest(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | None,
    scheme: QuantScheme,
    options: RtnOptions | None = None,
) -> CodebookTensor:
    """The codes nearest to the weight [N, K], with each block's largest magnitude as its scale.

    Raises:
        SchemeError: the weight holds NaN or infinity.
    """
    device = (options or RtnOptions()).device
    return _quantize(weight, scheme, lambda rows: _largest(to_blocks(rows, scheme), scheme), device)


def search(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | None,
    scheme: QuantScheme,
    options: MseOptions | None = None,
) -> CodebookTensor:
    """The codes nearest to the weight [N, K], with the scales of least weighted squared error.

    Args:
        weight: of any floating point type; it may be a view of a mapped file: it is read in blocks of rows.
        statistics: with the Hessian or the mean squares of the channels; None weighs all channels the same.
        scheme: how the weight will be stored.
        options: how long to search, and where; ``steps``, ``shrink`` and ``rounds`` as for integers.
    Raises:
        SchemeError: the weight holds NaN or infinity.
    """
    options = options or MseOptions()
    h = relative_squares(statistics if options.weighted else None, weight.shape[1])
    importance = place(h[None], options.device)
    return _quantize(weight, scheme, lambda rows: _search(rows, importance, scheme, options), options.device)


def _search(rows: Array, importance: Array, scheme: QuantScheme, options: MseOptions) -> Array:
    """Scales [B] of rows [n, K]; importance is [1, K]."""
    xp = array_namespace(rows)
    w = to_blocks(rows, scheme)
    h = to_blocks(xp.broadcast_to(importance, rows.shape), scheme)
    weighted = w * h

    def error(scale: Array) -> Array:
        """sum_k h_k (w_k - Q(w_k))^2 for each block, in steps of the scale: (t - w / s) s."""
        exact = w / scale[:, None]
        miss = nearest_values(exact, scheme)
        miss -= exact
        miss *= miss
        miss *= h
        return xp.sum(miss, axis=-1) * (scale * scale)

    full = best = _largest(w, scheme)
    least = error(best)

    def offer(scale: Array) -> None:
        nonlocal best, least
        missed = error(scale)
        better = missed < least
        best, least = xp.where(better, scale, best), xp.where(better, missed, least)

    for share in np.linspace(1.0, options.shrink, options.steps)[1:]:
        offer(store_scale(full * float(share), scheme.scale_dtype))
    for _ in range(options.rounds):
        offer(_refitted(w, h, weighted, best, scheme))
    return best


def _refitted(w: Array, h: Array, weighted: Array, scale: Array, scheme: QuantScheme) -> Array:
    """The scales of least error for the codes that ``scale`` gives, s = <h w t> / <h t t>."""
    xp = array_namespace(w)
    t = nearest_values(w / scale[:, None], scheme)
    across = xp.sum(weighted * t, axis=-1)
    along = xp.sum(t * t * h, axis=-1)
    fits = (along > 0) & (across > 0)
    found = xp.where(fits, across, scale) / xp.where(fits, along, xp.ones_like(along))
    return store_scale(found, scheme.scale_dtype)


def _largest(blocks: Array, scheme: QuantScheme) -> Array:
    xp = array_namespace(blocks)
    return block_scale(xp.max(xp.abs(blocks), axis=-1), scheme)


def _quantize(
    weight: npt.NDArray[Any], scheme: QuantScheme, find_scale: FindScale, device: Device
) -> CodebookTensor:
    n, k = weight.shape
    scale = np.empty(scheme.blocks(n, k), np.float32)
    codes = np.empty((n, k), np.uint8)
    width = scheme.group_width(k)
    unit = width // math.gcd(width, k)  # rows after which a block begins again

    empty = np.zeros(
        scale.shape, bool
    )  # blocks of zeros: any scale serves, and 1 would be far above the others

    def find(chunk: Array, here: "slice[int, int, Any]") -> None:
        scale[_blocks_of(here, k, width)] = fetch(find_scale(chunk))
        empty[_blocks_of(here, k, width)] = ~fetch(to_blocks(chunk, scheme)).any(axis=-1)

    def encode(chunk: Array, here: "slice[int, int, Any]") -> None:
        known = place(scale[_blocks_of(here, k, width)], device)
        shares = to_blocks(chunk, scheme) / known[:, None]
        codes[here] = fetch(from_blocks(nearest_codes(shares, scheme), *chunk.shape))

    def both(chunk: Array, here: "slice[int, int, Any]") -> None:
        find(chunk, here)
        encode(chunk, here)

    if not scheme.double_quant:
        sweep_rows(weight, both, device, unit)
        return CodebookTensor(scheme, codes, scale)
    sweep_rows(weight, find, device, unit)
    if not empty.all():
        scale[empty] = scale[~empty].min()
    double = double_quantize(scale)
    scale = double.scales(scheme.scale_dtype)
    sweep_rows(weight, encode, device, unit)
    return CodebookTensor(scheme, codes, scale, double)


def _blocks_of(rows: "slice[int, int, Any]", k: int, width: int) -> slice:
    """The blocks of rows that begin with one."""
    return slice(rows.start * k // width, -(-rows.stop * k // width))
