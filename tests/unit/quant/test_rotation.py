"""Rotations: orthogonal, the same for the same seed, applied as their matrix says, and spreading an outlier."""

import numpy as np
import pytest

from qcompiler.quant.rotation import make_rotation

SIZES = [
    1,
    2,
    12,
    30,
    64,
    92,
    192,
    576,
]  # Hadamard products of every kind, and 30 and 92, for which there is none here
EPSILON = 2.0**-23


@pytest.mark.parametrize("keeps_ones", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_orthogonal(size: int, keeps_ones: bool) -> None:
    matrix = make_rotation(size, 0, keeps_ones).matrix().astype(np.float64)
    # Each entry is a sum of up to two products of factors, so some epsilons of 1 / sqrt(size); 64 leaves room for the dense ones.
    assert np.abs(matrix @ matrix.T - np.eye(size)).max() <= 64 * EPSILON


@pytest.mark.parametrize("keeps_ones", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_applied_as_the_matrix_says(size: int, keeps_ones: bool) -> None:
    rotation = make_rotation(size, 1, keeps_ones)
    rows = np.random.default_rng(0).standard_normal((3, 5, 2 * size)).astype(np.float32)
    expected = (rows.reshape(-1, size).astype(np.float64) @ rotation.matrix()).reshape(rows.shape)
    assert np.abs(rotation.apply(rows) - expected).max() <= 64 * EPSILON * np.sqrt(size)


@pytest.mark.parametrize("size", SIZES)
def test_keeps_ones(size: int) -> None:
    """So it keeps means, and commutes with what subtracts them."""
    ones = np.ones((1, size), np.float32)
    assert np.abs(make_rotation(size, 0, keeps_ones=True).apply(ones) - 1).max() <= 64 * EPSILON


@pytest.mark.parametrize("size", [30, 64, 576])
def test_a_seed_decides(size: int) -> None:
    first, same, other = (make_rotation(size, seed).matrix() for seed in (3, 3, 4))
    assert np.array_equal(first, same)
    assert not np.allclose(first, other)


def test_an_outlier_becomes_a_small_part_of_all() -> None:
    outlier = np.zeros((1, 576), np.float32)
    outlier[0, 17] = 100
    turned = make_rotation(576, 0).apply(outlier)
    assert np.allclose(np.abs(turned), 100 / 24)  # every entry of R is 1 / sqrt(576)
