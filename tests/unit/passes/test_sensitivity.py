"""The rows of a weight on which its errors at other numbers of bits are compared."""

import numpy as np
import pytest

from qcompiler.passes.sensitivity import even_rows, largest_rows, rounded, row_errors
from qcompiler.quant.scheme import QuantScheme
from tests.small_models import Array, weight


def _groups_of_rows(size: int) -> QuantScheme:
    return QuantScheme(4, symmetric=False, group_size=size, group_axis="output")


@pytest.mark.parametrize(("n", "size"), [(1024, 32), (1000, 32), (700, 512), (40, 32)])
@pytest.mark.parametrize("how", ["evenly", "largest"])
def test_rows_that_share_groups_stay_together(n: int, size: int, how: str) -> None:
    """What is made of the chosen rows is what is stored of them; rows from several groups in one would share its range."""
    scheme, values = _groups_of_rows(size), weight(n, 16, seed=1)
    whole = rounded(values, scheme)
    rows = even_rows(scheme, n) if how == "evenly" else largest_rows(scheme, row_errors(values, whole))
    assert 0 < len(rows) <= max(256, size) and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rounded(values[rows], scheme).dequantize(), whole.dequantize()[rows])


def test_the_largest_rows_are_those() -> None:
    of_rows = np.random.default_rng(0).permutation(1000).astype(float)
    chosen = largest_rows(QuantScheme(4, symmetric=False, group_size=32), of_rows)
    assert set(of_rows[chosen]) == set(range(1000 - 256, 1000))
    block = largest_rows(_groups_of_rows(512), np.arange(1024.0))
    np.testing.assert_array_equal(block, np.arange(512, 1024))


def test_the_errors_of_rows_and_their_scores() -> None:
    values: Array = weight(300, 16, seed=2)
    quantized = rounded(values, QuantScheme(4, symmetric=False, group_size=16))
    squares = np.square(quantized.dequantize() - values)
    scores = np.abs(weight(300, 16, seed=3))
    # Sums of 16 numbers in float32.
    np.testing.assert_allclose(row_errors(values, quantized), squares.sum(1), rtol=1e-6)
    np.testing.assert_allclose(row_errors(values, quantized, scores), (squares * scores).sum(1), rtol=1e-6)
