import math

import numpy as np
import pytest

from qcompiler.algorithms import rtn
from qcompiler.algorithms.error import quantization_error
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics


def test_the_error_is_that_of_the_layers_output() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(20, 48)).astype(np.float32)
    x = (rng.normal(size=(500, 48)) @ rng.normal(size=(48, 48))).astype(np.float32)
    tensor = rtn.quantize(weight, None, QuantScheme(4, False, Granularity.GROUP, 16))
    error = tensor.dequantize() - weight
    full = quantization_error(
        weight, tensor, InputStatistics(500, hessian=(x.T @ x / 500).astype(np.float32))
    )
    assert full.output == pytest.approx(
        np.square(x @ error.T).sum() / np.square(x @ weight.T).sum(), rel=1e-3
    )
    assert full.weight == pytest.approx(np.square(error).sum() / np.square(weight).sum(), rel=1e-5)
    assert full.sqnr_db == pytest.approx(-10 * math.log10(full.output))
    stored = tensor.dequantize()
    expected = (stored * weight).sum() / np.linalg.norm(stored) / np.linalg.norm(weight)
    assert full.cosine == pytest.approx(expected, abs=1e-6)

    square = np.square(x).mean(0)
    channels = quantization_error(weight, tensor, InputStatistics(500, mean_square=square))
    assert channels.output == pytest.approx((error**2 * square).sum() / (weight**2 * square).sum(), rel=1e-4)
    without = quantization_error(weight, tensor, None)
    assert without.output == without.weight == pytest.approx(full.weight)


def test_exact_and_empty_weights() -> None:
    scheme = QuantScheme(8, True, Granularity.CHANNEL)
    zeros = np.zeros((2, 4), np.float32)
    nothing = quantization_error(zeros, rtn.quantize(zeros, None, scheme), None)
    assert (nothing.output, nothing.weight, nothing.sqnr_db, nothing.cosine) == (0.0, 0.0, math.inf, 1.0)
    ones = np.full((2, 4), -1.0, np.float32)
    assert quantization_error(ones, rtn.quantize(ones, None, scheme), None).sqnr_db == math.inf
