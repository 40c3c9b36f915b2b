"""A feed made complete: inputs that follow from others (past, positions, masks) filled in, the rest checked.

Filled in: an empty past (key and value caches of length 0), position_ids and cache_position, attention_mask,
token_type_ids, use_cache_branch, seqlens_k and total_sequence_length. Everything else must come with the
data. A cast is made silently where it keeps every value, or narrows float64: that is only NumPy's and JSON's
default.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.data import TOKENS, Feed
from qcompiler.errors import CalibrationError
from qcompiler.nearest import nearest

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model.

    Attributes:
        shape: a dimension is a size, a symbol that is the same size everywhere, or None.
        default: of an input that is also an initializer; used where the data leaves it out.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    default: Array | None = field(default=None, compare=False, repr=False)

    @property
    def label(self) -> str:
        """``int64 [batch, 8]``."""
        return f"{self.dtype} [{', '.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True, slots=True)
class _Extent:
    """Sizes of one feed: `visible` of its `past` positions hold something (none of a past of zeros)."""

    batch: int
    sequence: int
    past: int
    visible: int
    symbols: Mapping[str, int]


def token_input(inputs: Sequence[InputSpec]) -> str | None:
    """The input that takes tokens: input_ids, or the only integer input of rank 2 that is not filled in."""
    if any(spec.name == TOKENS for spec in inputs):
        return TOKENS
    found = [
        spec.name
        for spec in inputs
        if spec.dtype.kind in "iu" and len(spec.shape) == 2 and not is_filled(spec)
    ]
    return found[0] if len(found) == 1 else None


def is_filled(spec: InputSpec) -> bool:
    """Whether `complete_feed` fills the input in where the data leaves it out."""
    return spec.default is not None or _kind(spec) is not None


def past_inputs(inputs: Sequence[InputSpec]) -> list[InputSpec]:
    """Those that take the keys and values of earlier tokens."""
    return [spec for spec in inputs if _kind(spec) == "past"]


def past_shape(spec: InputSpec, batch: int, length: int, symbols: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a past input that holds ``length`` tokens.

    Args:
        symbols: sizes that are known; one that is 0 is the length of an empty past.

    Raises:
        CalibrationError: more than one of its dimensions may be its length.
    """
    sizes: list[int] = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int):
            sizes.append(size)
        elif axis == 0:
            sizes.append(batch)
        else:
            sizes.append(symbols.get(str(size)) or length)
    free = [size for size in spec.shape[1:] if not isinstance(size, int) and not symbols.get(str(size))]
    if len(free) > 1:
        raise CalibrationError(
            f"{spec.name}: cannot tell which dimension of {spec.label} is its length; give it in the data"
        )
    return tuple(sizes)


def complete_feed(feed: Feed, inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """Arrays for every input, in the order of `inputs`, with the types and ranks that the model asks for.

    Tokens of a text come as `TOKENS` and go to the model's token input, whatever its name.

    Raises:
        CalibrationError: an unknown name (the nearest is given), a wrong type, rank or size, or an input that
            neither the data gives nor can be filled in.
    """
    specs = {spec.name: spec for spec in inputs}
    given = dict(feed)
    tokens = token_input(inputs)
    if TOKENS in given and TOKENS not in specs and tokens is not None and tokens not in given:
        given[tokens] = given.pop(TOKENS)
    _check_names(given, specs)
    symbols: dict[str, int] = {}
    ready: dict[str, Array] = {}
    for name, array in given.items():
        ready[name] = _cast(array, specs[name])
        _check_shape(ready[name], specs[name], symbols)
    defaults = {spec.name: spec.default for spec in inputs if spec.default is not None}
    missing = [spec for spec in inputs if spec.name not in ready and spec.name not in defaults]
    lost = [spec for spec in missing if _kind(spec) is None]
    if lost:
        names = ", ".join(f"{spec.name} ({spec.label})" for spec in lost)
        raise CalibrationError(
            f"the data does not give {names}, which cannot be filled in; it gives {', '.join(feed)}"
        )
    batch, sequence = _batch_and_sequence(ready, specs, tokens)
    for spec in missing:
        if _kind(spec) == "past":
            ready[spec.name] = np.zeros(past_shape(spec, batch, 0, symbols), spec.dtype)
            _check_shape(ready[spec.name], spec, symbols)
    extent = _extent(ready, feed, inputs, batch, sequence, symbols)
    for spec in missing:
        if _kind(spec) != "past":
            ready[spec.name] = _filled(spec, extent).astype(spec.dtype)
            _check_shape(ready[spec.name], spec, symbols)
    complete = defaults | ready
    return {spec.name: complete[spec.name] for spec in inputs}


_KINDS = {
    "past": r"(.*[._/])?(past([._/].*|_key.*|_value.*|_kv.*|_\d.*)?"
    r"|(key|value|k|v|kv)_cache.*|cache_(k|v|key|value).*)",
    "positions": r"(.*[._/])?(position_ids|positions|cache_position)",
    "mask": r"(.*[._/])?(attention_mask|attn_mask|input_mask|padding_mask)",
    "zeros": r"(.*[._/])?(token_type_ids|segment_ids)",
    "has_past": r"(.*[._/])?use_cache_branch",
    "last_position": r"seqlens_k",
    "total": r"total_sequence_length",
}
_MOST_DIMENSIONS = {
    "past": 8,
    "positions": 3,
    "mask": 2,
    "zeros": 2,
    "has_past": 1,
    "last_position": 2,
    "total": 1,
}


_NUMBERS = "biufV"
"""Kinds of dtype that are numbers; V is what bfloat16 and its like say."""


def _kind(spec: InputSpec) -> str | None:
    """How the input is filled in; None where it must come with the data."""
    for kind, pattern in _KINDS.items():
        if re.fullmatch(pattern, spec.name):
            return kind if len(spec.shape) <= _MOST_DIMENSIONS[kind] else None
    return None


def _check_names(given: Feed, specs: Mapping[str, InputSpec]) -> None:
    if set(given) == {TOKENS} and TOKENS not in specs:  # as a text gives
        raise CalibrationError(
            f"the model has no input {TOKENS!r}, it takes {', '.join(specs)}: text is for language models; "
            "give arrays for others, --data FILE.npz (--calib FILE.npz of a compile)"
        )
    for name in given:
        if name not in specs:
            raise CalibrationError(f"the model has no input {name!r}; {nearest(name, specs)}")


def _cast(array: Array, spec: InputSpec) -> Array:
    if array.dtype == spec.dtype:
        return array
    if array.dtype.kind in _NUMBERS and spec.dtype.kind in _NUMBERS:
        with np.errstate(all="ignore"):  # what overflows is found below
            cast = array.astype(spec.dtype)
        if np.array_equal(cast.astype(array.dtype), array):
            return cast
        # Float data for a float16 model is rounded as the application would round it; only overflow is refused.
        rounds = array.dtype.kind in "fV" and spec.dtype.kind in "fV"
        if rounds and np.array_equal(np.isfinite(cast), np.isfinite(array)):
            return cast
    raise CalibrationError(
        f"{spec.name}: the model takes {spec.dtype}, which cannot hold these {array.dtype} values"
    )


def _check_shape(array: Array, spec: InputSpec, symbols: dict[str, int]) -> None:
    """Rank, fixed sizes, and each symbol the same size everywhere; notes the new ones in `symbols`."""
    got = list(array.shape)
    if array.ndim != len(spec.shape):
        raise CalibrationError(
            f"{spec.name}: the model takes {spec.label}, the data has {array.ndim} dimensions {got}; reshape it"
        )
    for axis, (size, wanted) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if wanted is None:
            continue
        known = wanted if isinstance(wanted, int) else symbols.setdefault(wanted, size)
        if size != known:
            why = "" if isinstance(wanted, int) else f" ({wanted} is {known} in another input)"
            what = "transpose it" if _is_turned(got, spec) else "cut or pad it"
            raise CalibrationError(
                f"{spec.name}: dimension {axis} must be {known}{why}, the data has {got}; {what}"
            )


def _is_turned(got: Sequence[int], spec: InputSpec) -> bool:
    """Whether the channels stand last in the data and second in the model: images as many libraries load them."""
    turned = [got[0], got[-1], *got[1:-1]] if len(got) > 2 else list(got)
    return turned != list(got) and all(
        wanted in (size, None) or isinstance(wanted, str)
        for size, wanted in zip(turned, spec.shape, strict=True)
    )


def _batch_and_sequence(ready: Feed, specs: Mapping[str, InputSpec], tokens: str | None) -> tuple[int, int]:
    """From the tokens, else from the first input that has both (inputs_embeds; not a past or a mask)."""
    named = [ready[tokens]] if tokens is not None and tokens in ready else []
    others = [
        array
        for name, array in ready.items()
        if array.ndim >= 2 and _kind(specs[name]) not in ("past", "mask")
    ]
    for array in named + others:
        return int(array.shape[0]), int(array.shape[1])
    return 1, 1


def _extent(
    ready: Feed,
    feed: Feed,
    inputs: Sequence[InputSpec],
    batch: int,
    sequence: int,
    symbols: Mapping[str, int],
) -> _Extent:
    for spec in inputs:
        if _kind(spec) == "past" and spec.name in ready:
            axis = past_axis(spec)
            length = ready[spec.name].shape[axis]
            return _Extent(batch, sequence, length, length if spec.name in feed else 0, symbols)
    return _Extent(batch, sequence, 0, 0, symbols)


def past_axis(spec: InputSpec) -> int:
    """The axis that grows: the one after the batch that is not fixed, else S of [B, H, S, D]."""
    free = [axis for axis, size in enumerate(spec.shape) if axis > 0 and not isinstance(size, int)]
    return free[0] if len(free) == 1 else max(len(spec.shape) - 2, 0)


def _filled(spec: InputSpec, extent: _Extent) -> Array:
    kind = _kind(spec)
    if kind == "has_past":
        return np.full([size if isinstance(size, int) else 1 for size in spec.shape], extent.visible > 0)
    total = extent.past + extent.sequence
    if kind == "total":
        return np.full([size if isinstance(size, int) else 1 for size in spec.shape], total)
    if kind == "last_position":
        return np.full([extent.batch] + [1] * (len(spec.shape) - 1), total - 1)
    if kind == "positions":
        positions = np.arange(extent.visible, extent.visible + extent.sequence)
        leading = [size if isinstance(size, int) else extent.batch for size in spec.shape[:-1]]
        return np.broadcast_to(positions, [*leading, extent.sequence])
    if kind == "mask":
        return _mask(spec, extent, total)
    return np.zeros([extent.batch, extent.sequence][-len(spec.shape) :])


def _mask(spec: InputSpec, extent: _Extent, total: int) -> Array:
    """Ones over what holds something: the past that the data gives, and the sequence."""
    last = spec.shape[-1] if spec.shape else None
    if isinstance(last, str):
        last = extent.symbols.get(last)
    mask = np.ones(total)
    mask[extent.visible : extent.past] = 0
    if last == extent.sequence:  # a mask over the new positions alone
        mask = mask[extent.past :]
    return np.broadcast_to(mask, [extent.batch, len(mask)][-len(spec.shape) :])
