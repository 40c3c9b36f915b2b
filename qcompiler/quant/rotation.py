"""Orthogonal changes of basis for activations and weights: R R^T = I, spread over all channels, the same for the same seed.

A randomised Hadamard matrix (QuaRot, Ashkboos et al. 2024, section 3): R = diag(s) H / sqrt(n) with signs s. Each entry has the size
1 / sqrt(n), so an outlier in one channel becomes a small part of all. H is a Kronecker product (see ``hadamard``), so x R costs
n times the sum of the factors' orders, not n^2. Where no Hadamard matrix is known R is random (QR of normal numbers).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompiler.quant.hadamard import hadamard, hadamard_factors

Floats = npt.NDArray[np.float32]

LARGEST_FACTOR = 64  # 2s are joined up to this order: one product in place of six passes over the data


@dataclass(frozen=True)
class Rotation:
    """R [n, n], orthogonal.

    Attributes:
        factors: orthogonal matrices whose Kronecker product is B [n, n].
        signs: float32 [n] of 1 and -1.
        keeps_ones: R = B diag(s) B^T, where B's first column is constant and its sign 1: then R maps the row of ones to itself, so it
            leaves means alone and commutes with LayerNorm. Else R = diag(s) B.
        what: for reports.
    """

    factors: tuple[Floats, ...]
    signs: Floats
    keeps_ones: bool
    what: str

    @property
    def size(self) -> int:
        """n."""
        return len(self.signs)

    def apply(self, rows: npt.NDArray[np.floating]) -> Floats:
        """``rows`` [..., m n] times R, float32; each of m blocks of n channels is turned by itself."""
        turned = np.asarray(rows, np.float32).reshape(-1, self.size)
        if self.keeps_ones:
            turned = _times_kronecker(
                _times_kronecker(turned, self.factors) * self.signs, self.factors, transposed=True
            )
        else:
            turned = _times_kronecker(turned * self.signs, self.factors)
        return turned.reshape(rows.shape)

    def matrix(self) -> Floats:
        """R itself, [n, n]."""
        return self.apply(np.eye(self.size, dtype=np.float32))


def make_rotation(size: int, seed: int, keeps_ones: bool = False) -> Rotation:
    """A rotation of ``size`` channels; the same arguments give the same numbers."""
    random = np.random.default_rng([seed, size])
    signs = random.choice(np.array([-1, 1], np.float32), size)
    if keeps_ones:
        signs[0] = 1
    orders = hadamard_factors(size)
    if orders is not None:
        joined = _joined(orders)
        factors = tuple(_factor(order) for order in joined)
        name = "x".join(map(str, joined)) or "1"
        return Rotation(factors, signs, keeps_ones, f"Hadamard {name}")
    normal = random.standard_normal((size, size))
    if keeps_ones:
        normal[:, 0] = 1
    q, r = np.linalg.qr(normal)
    q *= np.where(np.diag(r) < 0, -1.0, 1.0)  # else LAPACK's choice of signs would show
    return Rotation((q.astype(np.float32),), signs, keeps_ones, "random orthogonal")


def _joined(orders: tuple[int, ...]) -> tuple[int, ...]:
    """The same product with its 2s joined to powers of two, the largest last."""
    rest, twos = [order for order in orders if order != 2], orders.count(2)
    most = LARGEST_FACTOR.bit_length() - 1
    powers = [most] * (twos // most) + ([twos % most] if twos % most else [])
    return (*rest, *(2**power for power in sorted(powers)))


def _factor(order: int) -> Floats:
    """Orthogonal [order, order]: a Hadamard matrix over the root of its order."""
    if order & (order - 1):
        matrix = hadamard(order)
    else:
        matrix = hadamard(1)
        while len(matrix) < order:
            matrix = np.kron(matrix, hadamard(2)).astype(np.int8)
    return np.asarray(matrix / np.sqrt(order), np.float32)


def _times_kronecker(rows: Floats, factors: tuple[Floats, ...], transposed: bool = False) -> Floats:
    """rows [M, n] times the Kronecker product of the factors, one axis at a time."""
    m = len(rows)
    tensor = rows.reshape(m, *(len(factor) for factor in factors))
    for axis, factor in enumerate(factors, 1):
        operand = factor.T if transposed else factor
        tensor = np.moveaxis(np.tensordot(tensor, operand, axes=(axis, 0)), -1, axis)
    return np.ascontiguousarray(tensor, np.float32).reshape(m, -1)
