"""Numbers as people read them: bytes, shapes, seconds."""

import math
from collections.abc import Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB")


def format_bytes(count: float) -> str:
    """Decimal units, three digits: ``82.1 MB``."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} {_UNITS[-1]}"


def size_change(before: int, after: int, digits: int) -> str:
    """``5.3 times smaller``, ``1.6 times larger``: a size beside what it was, both in bytes and above 0."""
    if after > before:
        return f"{after / before:.{digits}f} times larger"
    return f"{before / after:.{digits}f} times smaller"


def format_memory(count: float) -> str:
    """Binary units, as ``--memory-limit`` takes them: ``98 KiB``, ``302 MiB``, ``1.40 GiB``."""
    if count >= 1 << 30:
        return f"{count / 2**30:.2f} GiB"
    if count < 1 << 20:
        return f"{count / 2**10:.0f} KiB"
    return f"{count / 2**20:.0f} MiB"


def format_shape(shape: Sequence[int]) -> str:
    """``576 x 1536``; empty for no shape."""
    return " x ".join(map(str, shape))


def format_seconds(seconds: float) -> str:
    """``8.3 s``, ``2 min 5 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def format_decibel(value: float) -> str:
    """``41.2 dB``; words where nothing differs, and where nothing is alike."""
    return "equal" if value == math.inf else "none" if value == -math.inf else f"{value:.1f} dB"


def format_rate(rate: float) -> str:
    """Four digits, thousands apart: ``17,070``, ``88.25``."""
    rounded = float(f"{rate:.4g}")
    return f"{rounded:,.0f}" if rounded >= 1000 else f"{rounded:.4g}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 node``, ``2 nodes``; ``plural`` where an s does not make it."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"
