"""Codes of 3 bits in 3 bits: a layout that few operations turn into MatMulNBits' 4 bits, and back.

Twice a code of 3 bits is one of 4 bits whose lowest bit is 0, and half its scale and twice its zero point make it the same number. Of the
bytes that such codes fill, two a byte, the first three quarters of a block are stored, and in their lowest bits of codes, which are 0,
the last quarter: bits 1, 2 and 3 of its codes go into the first, second and third quarter, byte by byte.
"""

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

SPARE = 0x11
"""The lowest bits of both codes of a byte."""
_TOP = 0x88
_HALF = 0x44


def fits(packed: Bytes, symmetric: bool) -> bool:
    """Whether two 4-bit codes a byte need 3 bits alone.

    Args:
        symmetric: they are about 8, and have to be 4 to 11; else 0 to 7.
    """
    if not symmetric:
        return not np.any(packed & np.uint8(_TOP))
    return bool(np.all((packed ^ (packed >> np.uint8(1))) & np.uint8(_HALF) == _HALF))


def twice(packed: Bytes, symmetric: bool) -> Bytes:
    """Two 4-bit codes a byte as ``fits`` has them (about 8: about 4 first), twice as large: even, 0 to 14."""
    about = np.uint8(_HALF if symmetric else 0)
    doubled: Bytes = (packed - about) << np.uint8(1)
    return doubled


def shorten(even: Bytes) -> Bytes:
    """uint8 [.., 3 q] of blocks of even 4-bit codes, uint8 [.., 4 q]."""
    q = even.shape[-1] // 4
    last = even[..., 3 * q :]
    spare = np.uint8(SPARE)
    parts = [
        even[..., i * q : (i + 1) * q] | ((last >> np.uint8(i + 1)) & spare) for i in range(3)
    ]  # bit 1 + i of the last quarter's codes
    return np.concatenate(parts, -1)


def lengthen(short: Bytes) -> Bytes:
    """uint8 [.., 4 q] of what ``shorten`` made, uint8 [.., 3 q]."""
    q = short.shape[-1] // 3
    spare = short & np.uint8(SPARE)
    last = np.zeros((*short.shape[:-1], q), np.uint8)
    for i in range(3):
        last |= spare[..., i * q : (i + 1) * q] << np.uint8(i + 1)
    return np.concatenate([short ^ spare, last], -1)
