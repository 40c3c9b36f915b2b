"""Hadamard matrices by construction: H of order n holds +1 and -1 only, and H H^T = n I.

Orders: 1 and 2 (Sylvester 1867); q + 1 for a prime power q = 3 mod 4 and 2 (q + 1) for q = 1 mod 4 (Paley 1933, from the quadratic
characters of a finite field); and products of orders, whose matrices are Kronecker products. Nothing is looked up in a table.
"""

from itertools import product

import numpy as np
import numpy.typing as npt

Signs = npt.NDArray[np.int8]

LARGEST_BASE = (
    512  # a factor is a dense matrix: a larger one takes the structure that makes a product cheap away
)


def hadamard_factors(order: int) -> tuple[int, ...] | None:
    """Orders whose Kronecker product is a Hadamard matrix of ``order``, as many 2s among them as can be; None where none is known here.

    The smallest Paley factor stands first: (36, 2, 2, 2, 2) for 576.
    """
    if order == 1:
        return ()
    twos = (order & -order).bit_length() - 1
    for count in range(twos, -1, -1):
        base = order >> count
        if base == 1 or _is_paley(base):
            return (*([base] if base > 1 else []), *(2,) * count)
    for base in range(4, min(order // 4, LARGEST_BASE) + 1, 4):
        rest = hadamard_factors(order // base) if order % base == 0 and _is_paley(base) else None
        if rest is not None:
            return (base, *rest)
    return None


def hadamard(order: int) -> Signs:
    """The matrix of one factor, int8 [order, order]; its first column holds ones.

    Args:
        order: 1, 2, or what ``hadamard_factors`` gives as a factor.
    Raises:
        ValueError: no construction here gives this order.
    """
    if order == 1:
        return np.ones((1, 1), np.int8)
    if order == 2:
        return np.array([[1, 1], [1, -1]], np.int8)
    if not _is_paley(order):
        raise ValueError(f"no Hadamard matrix of order {order} by one construction; ask hadamard_factors")
    matrix = _paley_1(order - 1) if _prime_power(order - 1, 3) else _paley_2(order // 2 - 1)
    return (matrix * matrix[:, :1]).astype(np.int8)  # a row times -1 changes no product of two others


def _is_paley(order: int) -> bool:
    if order % 4 or order > LARGEST_BASE:
        return False
    return _prime_power(order - 1, 3) is not None or _prime_power(order // 2 - 1, 1) is not None


def _paley_1(q: int) -> Signs:
    """I + S of order q + 1, with S skew: S S^T = q I."""
    skew = np.zeros((q + 1, q + 1), np.int8)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = _characters(q)
    return (np.eye(q + 1, dtype=np.int8) + skew).astype(np.int8)


def _paley_2(q: int) -> Signs:
    """C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]] of order 2 (q + 1), with C symmetric: C C^T = q I."""
    conference = np.zeros((q + 1, q + 1), np.int8)
    conference[0, 1:], conference[1:, 0] = 1, 1
    conference[1:, 1:] = _characters(q)
    diagonal = np.array([[1, -1], [-1, -1]], np.int8)
    return (np.kron(conference, hadamard(2)) + np.kron(np.eye(q + 1, dtype=np.int8), diagonal)).astype(
        np.int8
    )


def _prime_power(q: int, remainder: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k and q = remainder mod 4, p an odd prime; or None."""
    if q < 3 or q % 4 != remainder:
        return None
    p = next(d for d in range(2, q + 1) if q % d == 0)  # the smallest divisor is a prime
    k, rest = 0, q
    while rest % p == 0:
        k, rest = k + 1, rest // p
    return (p, k) if rest == 1 else None


def _characters(q: int) -> Signs:
    """int8 [q, q] over the field of q elements: 1 where the difference of two is a square, -1 where it is none, 0 on the diagonal."""
    found = _prime_power(q, q % 4)
    assert found is not None
    p, k = found
    digits = np.array(
        list(product(range(p), repeat=k)), np.int64
    )  # elements are polynomials of degree below k
    weights = p ** np.arange(k - 1, -1, -1)
    differences = ((digits[:, None, :] - digits[None, :, :]) % p) @ weights
    character = np.full(q, -1, np.int8)
    character[0] = 0
    character[_squares(p, k, digits) @ weights] = 1
    signs: Signs = character[differences]
    return signs


def _squares(p: int, k: int, elements: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The squares of a field of p^k elements other than 0, as polynomials [(p^k - 1) / 2, k], highest power first.

    Products are taken modulo a polynomial x^k + ...; of such rings only a field has squares in exactly half of its other elements.
    """
    for tail in elements:
        rows = np.unique(_squared_modulo(elements[1:], tail, p), axis=0)
        if len(rows) == (p**k - 1) // 2 and rows.any(axis=1).all():
            return rows
    raise AssertionError(f"no field of {p}^{k} elements")  # there is one for every prime power


def _squared_modulo(
    elements: npt.NDArray[np.int64], tail: npt.NDArray[np.int64], p: int
) -> npt.NDArray[np.int64]:
    """Squares [., k] of polynomials [., k] modulo x^k + tail, coefficients modulo p."""
    k = elements.shape[1]
    square = np.zeros((len(elements), 2 * k - 1), np.int64)
    for i, j in product(range(k), repeat=2):
        square[:, i + j] += elements[:, i] * elements[:, j]
    for high in range(k - 1):  # x^k = -tail, from the highest power down
        square[:, high + 1 : high + 1 + k] -= square[:, high : high + 1] * tail
        square %= p
    return square[:, k - 1 :] % p
