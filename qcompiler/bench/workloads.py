"""What a model is run on: made-up inputs of the sizes that are asked for, or the user's.

prefill    a model that takes tokens: all of them at once, after an empty past
decode     one that takes a past (keys and values) too: one token after it
batch      any other model: one sample
data       the first feed of the user's

Numbers are random, from a seed: a time depends on sizes, not on them (unless the model itself branches on its input).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.data import open_calibration
from qcompiler.calibration.feeds import check_indices, index_bounds, input_specs
from qcompiler.calibration.fill import (
    InputSpec,
    complete_feed,
    is_filled,
    past_axis,
    past_inputs,
    token_input,
)
from qcompiler.calibration.sampling import random_feeds
from qcompiler.errors import CalibrationError, InputError
from qcompiler.nearest import nearest

Array = npt.NDArray[Any]
TOKENS, PAST = 512, 128
_NUMBERS = "biuf"  # kinds of dtype that NumPy can hand to ONNX Runtime and values are made up for


@dataclass(frozen=True)
class Sizes:
    """What is asked for.

    Attributes:
        tokens: of prefill; None for TOKENS, or as many as the model takes.
        past: tokens in the cache of decode; None for PAST, or what the cache has room for where that is fixed.
        dims: sizes of symbolic dimensions; without one the first dimension of an input is 1, others are 64.
        data: feeds of the user's, in any form that ``--calib`` takes but text.
        seed: of made-up numbers.
    """

    tokens: int | None = None
    past: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    data: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Workload:
    """A complete feed.

    Attributes:
        tokens: in it, over all rows of the batch; past: in the cache. None where the model takes none.
    """

    name: str
    tokens: int | None
    past: int | None
    feed: dict[str, Array]


def make_workloads(path: str, model: ir.Model, sizes: Sizes) -> list[Workload]:
    """Every workload that fits the model.

    Args:
        path: the model's, for messages.

    Raises:
        InputError: an input that no values can be made up for, or sizes and data that do not fit the model.
    """
    try:
        specs, bounds = input_specs(model), index_bounds(model)
        if sizes.data is not None:
            return [_given(specs, bounds, sizes.data)]
    except CalibrationError as error:
        raise InputError(f"{path}: {error}") from error
    maker = _Maker(path, specs, bounds, sizes)
    return maker.batch() if maker.tokens is None else maker.prefill_and_decode(maker.tokens)


def check_dims(dims: Mapping[str, int], models: Iterable[ir.Model]) -> None:
    """Refuse the size of a dimension that no input has, or that follows from the numbers of tokens.

    Raises:
        InputError: names the nearest dimension.
    """
    known = set[str]()
    for model in models:
        specs = input_specs(model)
        drawn = [spec.shape for spec in specs if not is_filled(spec)]
        known |= {size for shape in drawn for size in shape if isinstance(size, str)} - {_sequence(specs)}
    for name in dims:
        if name not in known:
            remedy = (
                nearest(name, known)
                if known
                else "all are fixed, or follow from --tokens and --past; leave it out"
            )
            raise InputError(f"--dim {name}: no such dimension to choose a size for; {remedy}")


def _given(specs: list[InputSpec], bounds: Mapping[str, int], data: str) -> Workload:
    if data.endswith(".txt"):
        raise CalibrationError(
            f"{data}: a time does not depend on what a text says; give its length by --tokens, or arrays by --data FILE.npz"
        )
    opened = open_calibration(data, None, 1, TOKENS)
    feed = complete_feed(next(iter(opened)), specs)
    tokens = token_input(specs)
    check_indices(feed, bounds, tokens, opened.source)
    return Workload("data", None if tokens is None else feed[tokens].size, _held(specs, feed), feed)


@dataclass(frozen=True)
class _Maker:
    """Feeds for one model."""

    path: str
    specs: list[InputSpec]
    bounds: Mapping[str, int]
    sizes: Sizes

    @property
    def tokens(self) -> InputSpec | None:
        """The input of tokens, if it is [batch, sequence]."""
        name = token_input(self.specs)
        return next((spec for spec in self.specs if spec.name == name and len(spec.shape) == 2), None)

    def batch(self) -> list[Workload]:
        return [Workload("batch", None, None, self._draw({}, 64, 0))]

    def prefill_and_decode(self, tokens: InputSpec) -> list[Workload]:
        caches = past_inputs(self.specs)
        fixed = self._fixed_length(tokens)
        found = []
        if fixed is None or fixed > 1 or not caches:
            count = fixed or self.sizes.tokens or TOKENS
            feed = self._draw({_sequence(self.specs): count}, count, 0)
            found.append(Workload("prefill", feed[tokens.name].size, 0 if caches else None, feed))
        if caches and fixed in (None, 1):
            past = PAST if self.sizes.past is None else self.sizes.past
            feed = self._draw({_sequence(self.specs): 1}, 1, past)
            held = _held(self.specs, feed)
            if self.sizes.past not in (None, held):
                raise InputError(
                    f"{self.path}: {caches[0].name} ({caches[0].label}) has a fixed length; "
                    f"leave --past out, or give --past {held}"
                )
            found.append(Workload("decode", feed[tokens.name].size, held, feed))
        return found

    def _fixed_length(self, tokens: InputSpec) -> int | None:
        """How many tokens the model takes at a time, where it takes no other number."""
        length = tokens.shape[1]
        if not isinstance(length, int):
            return None
        if self.sizes.tokens not in (None, length):
            raise InputError(
                f"{self.path}: {tokens.name} ({tokens.label}) takes {length} tokens at a time; "
                f"leave --tokens out, or give --tokens {length}"
            )
        return length

    def _draw(self, lengths: Mapping[str, int], free_size: int, past: int) -> dict[str, Array]:
        lost = [spec for spec in self.specs if not is_filled(spec) and spec.dtype.kind not in _NUMBERS]
        if lost:
            names = ", ".join(f"{spec.name} ({spec.label})" for spec in lost)
            raise InputError(
                f"{self.path}: no values can be made up for {names}; give its inputs by --data FILE.npz"
            )
        sizes = {**self.sizes.dims, **lengths}
        made = random_feeds(
            self.specs, 1, self.sizes.seed, highs=self.bounds, sizes=sizes, free_size=free_size, past=past
        )
        try:
            return next(made)
        except CalibrationError as error:
            raise InputError(
                f"{self.path}: no inputs can be made up: {error}; give them by --data FILE.npz"
            ) from error


def _sequence(specs: list[InputSpec]) -> str:
    """The symbol of the tokens' second dimension; empty without one."""
    tokens = token_input(specs)
    shape = next((spec.shape for spec in specs if spec.name == tokens), ())
    return str(shape[1]) if len(shape) == 2 and isinstance(shape[1], str) else ""


def _held(specs: list[InputSpec], feed: Mapping[str, Array]) -> int | None:
    """Tokens in the cache; None without one."""
    caches = past_inputs(specs)
    return feed[caches[0].name].shape[past_axis(caches[0])] if caches else None
