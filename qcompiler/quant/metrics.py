"""How far logits are from their reference's: KL divergence, perplexity, top-1 agreement. For SQNR and cosine see ``similarity``.

Generic over NumPy arrays and torch tensors. Sums run in float64 over blocks of rows, so that the memory taken
stays a few blocks however large the vocabulary.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.quant.affine import Array

_BLOCK = 1 << 20  # elements: 8 MB in float64


def kl_divergence(reference_logits: Array, logits: Array) -> float:
    """Mean over the rows of KL(softmax(reference) || softmax(logits)), in nats. Logits are [..., classes].

    A class that the reference excludes (-inf) adds nothing.
    """
    total, rows = 0.0, 0
    for row_kls in _row_kls(reference_logits, logits):
        total += float(row_kls.sum())
        rows += int(row_kls.shape[0])
    return max(total / rows, 0.0)


def kl_of_rows(reference_logits: npt.NDArray[Any], logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """KL as above of each row, float64 [rows] from NumPy arrays [..., classes], in nats."""
    found: npt.NDArray[np.float64] = np.concatenate(list(_row_kls(reference_logits, logits)))
    return found.clip(min=0.0)  # rounding may leave less


def _row_kls(reference_logits: Array, logits: Array) -> Iterator[Any]:
    for r, a in _blocks(reference_logits, logits):
        log_p, log_q = _log_softmax(r), _log_softmax(a)
        xp = array_namespace(log_p)
        p = xp.exp(log_p)
        possible, zero = p > 0, xp.zeros_like(p)
        yield (p * (xp.where(possible, log_p, zero) - xp.where(possible, log_q, zero))).sum(-1)


def mean_nats(logits: Array, targets: Array) -> float:
    """Mean negative log likelihood of targets, integers [...], under logits [..., classes], in nats."""
    total, rows = 0.0, 0
    labels = targets.reshape(-1)
    for (block,) in _blocks(logits):
        log_p = _log_softmax(block)
        xp = array_namespace(log_p)
        index = xp.astype(labels[rows : rows + int(block.shape[0])], xp.int64)
        total -= float(xp.take_along_axis(log_p, index[:, None], axis=-1).sum())
        rows += int(block.shape[0])
    return total / rows


def perplexity(nats: float) -> float:
    """exp of a mean of ``mean_nats``; infinity where that is past a float's range (709 nats), as a broken model's may be."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def top1_agreement(reference_logits: Array, logits: Array) -> float:
    """Share of the rows whose largest logit is the same class in both."""
    agree, rows = 0, 0
    for r, a in _blocks(reference_logits, logits):
        xp = array_namespace(r)
        agree += int((xp.argmax(r, axis=-1) == xp.argmax(a, axis=-1)).sum())
        rows += int(r.shape[0])
    return agree / rows


def _log_softmax(rows: Array) -> Array:
    xp = array_namespace(rows)
    shifted = rows - xp.max(rows, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def _blocks(*arrays: Array) -> Iterator[tuple[Any, ...]]:
    """Row blocks of arrays of one shape [..., C], each as float64 [rows, C]."""
    if any(array.shape != arrays[0].shape for array in arrays):
        shapes = ", ".join(str(tuple(array.shape)) for array in arrays)
        raise ValueError(f"arrays to compare must have one shape, not {shapes}")
    width = int(arrays[0].shape[-1]) if arrays[0].ndim else 1
    flat = [array.reshape(-1, width) for array in arrays]
    step = max(1, _BLOCK // max(width, 1))
    for start in range(0, int(flat[0].shape[0]), step):
        yield tuple(_double(array[start : start + step]) for array in flat)


def _double(array: Array) -> Array:
    if isinstance(array, np.ndarray):
        return array.astype(np.float64)  # also from ml_dtypes' types, which the array API does not know
    xp = array_namespace(array)
    return xp.astype(array, xp.float64)
