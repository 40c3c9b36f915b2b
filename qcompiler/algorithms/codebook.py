"""rtn and mse for weights of a codebook: the nearest entry of the table, scales that cover each block or have the least error.

    scale = max |w|,  code = argmin |table[code] - w / scale|          (QLoRA, Dettmers et al. 2023, equation 2)
    argmin over scale of   sum_k h_k (w_k - table[code_k] scale)^2     (searched: shrunk ranges, then s = <h w t> / <h t t>)

Every step of the search is kept, block by block, only where the error falls. With double quantization the scales are found first, stored
in 8 bits, and the codes are the nearest ones for what is stored.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import BLOCK, Device, chunk_size, fetch, map_in_threads, place
from qcompiler.algorithms.mse import MseOptions
from qcompiler.algorithms.rtn import RtnOptions
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


def beside(affine: Quantizer, codebook: Quantizer) -> Quantizer:
    """One quantizer of the two: ``codebook`` where the scheme has a table, else ``affine``."""

    def quantize(
        weight: npt.NDArray[Any], statistics: InputStatistics | None, scheme: QuantScheme, options: Any = None
    ) -> Any:
        return (codebook if scheme.is_codebook else affine)(weight, statistics, scheme, options)

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
    known = None if statistics is None or not options.weighted else statistics.diagonal()
    h = (
        np.ones(weight.shape[1], np.float32)
        if known is None or not (known > 0).any()
        else np.maximum(known, 0)
    )
    # A channel that calibration never drove still counts a little: other data may drive it.
    importance = place((h / float(h.mean()) + 1e-6)[None], options.device)
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

    if not scheme.double_quant:
        _sweep(weight, width, (find, encode), device)
        return CodebookTensor(scheme, codes, scale)
    _sweep(weight, width, (find,), device)
    if not empty.all():
        scale[empty] = scale[~empty].min()
    double = double_quantize(scale)
    scale = double.scales(scheme.scale_dtype)
    _sweep(weight, width, (encode,), device)
    return CodebookTensor(scheme, codes, scale, double)


Work = Callable[[Array, "slice[int, int, Any]"], None]


def _sweep(weight: npt.NDArray[Any], width: int, works: tuple[Work, ...], device: Device) -> None:
    """Each work in turn on chunks of rows that begin with a block: (float32 rows [n, K], which rows they are)."""
    n, k = weight.shape
    unit = width // math.gcd(width, k)  # rows after which a block begins again

    def one_chunk(block: npt.NDArray[Any], start: int, rows: "slice[int, int, Any]") -> None:
        chunk = place(block[rows], device)
        for work in works:
            work(chunk, slice(start + rows.start, start + rows.stop))

    for rows in _aligned(n, k, unit, BLOCK):
        # One sweep over a transposed, mapped file, not one for each chunk.
        block = np.ascontiguousarray(weight[rows])
        chunks = _aligned(len(block), k, unit, chunk_size(device))
        map_in_threads(partial(one_chunk, block, rows.start), chunks, device)


def _aligned(n: int, k: int, unit: int, size: int) -> "list[slice[int, int, Any]]":
    """Slices of rows of about ``size`` weights, each a whole number of units but the last."""
    step = max(unit, size // max(k, 1) // unit * unit)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _blocks_of(rows: "slice[int, int, Any]", k: int, width: int) -> slice:
    """The blocks of rows that begin with one."""
    return slice(rows.start * k // width, -(-rows.stop * k // width))
