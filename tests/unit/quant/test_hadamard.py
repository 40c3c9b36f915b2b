"""Hadamard matrices: H H^T = n I for every order that a construction claims, and none is claimed that cannot be."""

from functools import reduce

import numpy as np
import pytest

from qcompiler.quant.hadamard import hadamard, hadamard_factors

# 28 = 27 + 1 and 344 = 343 + 1 need fields of 3^3 and 7^3 elements; 36 = 2 (17 + 1), 100 = 2 (49 + 1) the second construction.
PALEY = [4, 8, 12, 20, 28, 36, 44, 60, 76, 100, 108, 148, 244, 344]


@pytest.mark.parametrize("order", [1, 2, *PALEY])
def test_rows_are_orthogonal(order: int) -> None:
    matrix = hadamard(order).astype(np.int64)
    assert (np.abs(matrix) == 1).all()
    assert (matrix @ matrix.T == order * np.eye(order, dtype=np.int64)).all()
    assert (matrix[:, 0] == 1).all()


@pytest.mark.parametrize(
    ("order", "factors"),
    [(1, ()), (64, (2,) * 6), (576, (36, 2, 2, 2, 2)), (14336, (28, *(2,) * 9)), (11008, (344, *(2,) * 5)), (1040, (20, 52))],
)  # fmt: skip
def test_factors_multiply_to_the_order(order: int, factors: tuple[int, ...]) -> None:
    assert hadamard_factors(order) == factors
    assert np.prod(factors, initial=1) == order


@pytest.mark.parametrize("order", [6, 17, 30, 92])
def test_unknown_orders_are_said_to_be(order: int) -> None:
    """6 and 17 cannot exist; 92 does, but by none of these constructions."""
    assert hadamard_factors(order) is None
    with pytest.raises(ValueError, match="ask hadamard_factors"):
        hadamard(order)


@pytest.mark.parametrize("order", range(4, 400, 4))
def test_every_product_of_factors_is_one(order: int) -> None:
    factors = hadamard_factors(order)
    if factors is None:
        return
    matrix = reduce(np.kron, [hadamard(factor).astype(np.int64) for factor in factors])
    assert (matrix @ matrix.T == order * np.eye(order, dtype=np.int64)).all()
