"""A layer for tests of algorithms that round it as a whole: its inputs, its weights, schemes for them, and the error of its output."""

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.error import quantization_error
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import QuantizedTensor

Float = npt.NDArray[np.float32]

OTHER_SCHEMES = [
    QuantScheme(4, True, Granularity.GROUP, 32),
    QuantScheme(3, False, Granularity.CHANNEL),
    QuantScheme(2, False, Granularity.GROUP, 16, "float16"),
    QuantScheme(8, True, Granularity.TENSOR),
]
"""Beside a test's own: of each granularity, bits and kind of scale one."""


def correlated_inputs(k: int, rows: int = 400, seed: int = 0) -> InputStatistics:
    """Inputs whose channels differ in size and go together in a few directions, as activations do."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, k)) + rng.normal(size=(rows, 6)) @ rng.normal(size=(6, k))
    x = (x * np.exp(0.7 * rng.normal(size=k))).astype(np.float32)
    return InputStatistics(rows, x.T @ x / rows)


def heavy_tailed(n: int, k: int, freedom: int) -> Float:
    """Weights [n, k] by Student's distribution: the fewer its degrees of freedom, the larger the largest."""
    return np.random.default_rng(1).standard_t(freedom, (n, k)).astype(np.float32)


def output_error(weight: Float, tensor: QuantizedTensor, statistics: InputStatistics) -> float:
    """The relative squared error of the layer's output."""
    return quantization_error(weight, tensor, statistics).output
