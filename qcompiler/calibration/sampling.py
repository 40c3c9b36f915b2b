"""Calibration data where the user gives none: tokens sampled from the model itself, or seeded random arrays.

A language model without a cache needs O(S^2) tokens of forward passes for an exact sample of S tokens. Here
a token is drawn given only the last `context` .. 2 * `context` - 1 tokens, many chains side by side, so it
costs about 1.5 * `context` forward tokens however long the sequence. Text sampled so is what the model
finds likely: 16 x 512 tokens from SmolLM2-135M with context 4 have perplexity 36 under the whole context,
which is exp(entropy) of the model there, and cost 5.5 times one forward pass over them (about 70 s on two
idle cores); context 8 gives 21 against 23 at twice the cost. Jacobi iteration of whole windows, which needs
no cache either, was at 134 against 79 after 8 forward passes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.fill import InputSpec, complete_feed, is_filled, past_inputs, past_shape
from qcompiler.errors import CalibrationError

Array = npt.NDArray[Any]
Tokens = npt.NDArray[np.int64]
RunTokens = Callable[[Tokens], Array]
"""Token ids int64 [B, S] -> logits float [B, S, V]."""

_LOGIT_BYTES = 64 << 20
"""Logits of one call at most; above that it is run in parts (vocabulary 150,000: 4 MB for 7 tokens)."""


def sample_tokens(
    run: RunTokens,
    vocabulary: int,
    sequences: int,
    length: int,
    seed: int,
    *,
    context: int = 4,
    top_k: int = 50,
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Tokens:
    """Sequences that a causal language model finds likely; the same seed gives the same tokens.

    Each sequence is one or more chains; a chain forgets its random start before anything is kept.

    Args:
        run: the model, given token ids alone.
        vocabulary: token ids are below it; further logits (padding) are ignored.
        sequences: how many.
        length: tokens in each.
        seed: of start tokens and draws.
        context: tokens that a draw sees at least; it sees fewer than twice as many.
        top_k: draws are among that many likeliest tokens.
        temperature: above 1 flattens, below 1 sharpens the draws.
        progress: called with (tokens drawn for each chain, of how many).

    Returns:
        int64 [sequences, length].

    Raises:
        CalibrationError: the logits are no [B, S, V], or not finite.
    """
    pieces = max(
        1, min(32 // sequences, length // 64)
    )  # short sequences alone would leave the GEMMs too few rows
    steps = -(-length // pieces)
    warm_up = 2 * context
    chains = sequences * pieces
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary, (chains, 1))
    start = 0
    for step in range(warm_up + steps):
        if tokens.shape[1] - start == 2 * context:
            start += context
        logits = _last_logits(run, tokens[:, start:], vocabulary) / np.float32(temperature)
        tokens = np.concatenate([tokens, _draw(logits, top_k, rng)], axis=1)
        if progress is not None:
            progress(step + 1, warm_up + steps)
    return tokens[:, 1 + warm_up :].reshape(sequences, pieces * steps)[:, :length]


def is_causal(run: RunTokens, vocabulary: int, seed: int) -> bool:
    """Whether a later token leaves the logits of earlier ones alone: a model that can be sampled from."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary, (1, 8))
    changed = tokens.copy()
    changed[0, -1] = (changed[0, -1] + vocabulary // 2) % vocabulary
    before, after = (_checked(run(each), each, vocabulary)[0, :-1] for each in (tokens, changed))
    return bool(
        np.abs(before - after).max() <= 1e-3 * np.abs(before).max()
    )  # blocked GEMMs differ by far less


def random_feeds(
    inputs: Sequence[InputSpec],
    samples: int,
    seed: int,
    *,
    highs: Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
    free_size: int = 64,
    past: int = 0,
) -> Iterator[dict[str, Array]]:
    """Seeded feeds for a model of any kind: normal floats, uniform integers; the rest filled in.

    Args:
        inputs: of the model.
        samples: how many feeds; feed i is the same whatever `samples` is.
        seed: of all values.
        highs: exclusive upper bound by input name, such as the rows of the embedding it indexes. Without
            one, 8-bit integers take all their values, wider ones 0 and 1.
        sizes: of symbolic dimensions. Without one, the first dimension is 1 and others are `free_size`.
        free_size: see `sizes`.
        past: tokens that a cache of keys and values holds; 0 leaves it to be filled in.

    Raises:
        CalibrationError: an input that is neither numbers nor truth values, or a cache whose length cannot be told.
    """
    symbols = dict(sizes or {})
    drawn = [spec for spec in inputs if not is_filled(spec)]
    shapes = {spec.name: _sizes(spec, symbols, free_size) for spec in drawn}
    if past:
        batch = next((shape[0] for shape in shapes.values() if shape), 1)
        caches = past_inputs(inputs)
        shapes |= {spec.name: list(past_shape(spec, batch, past, symbols)) for spec in caches}
        drawn += caches
    for sample in range(samples):
        rng = np.random.default_rng((seed, sample))
        feed = {
            spec.name: _random(spec, shapes[spec.name], (highs or {}).get(spec.name), rng) for spec in drawn
        }
        yield complete_feed(feed, inputs)


def _last_logits(run: RunTokens, window: Tokens, vocabulary: int) -> npt.NDArray[np.float32]:
    """Logits after the last token, float32 [B, V]; in as many calls as `_LOGIT_BYTES` asks for."""
    rows = max(1, _LOGIT_BYTES // (4 * window.shape[1] * vocabulary))
    parts = (window[row : row + rows] for row in range(0, len(window), rows))
    last = [_checked(run(part), part, vocabulary)[:, -1] for part in parts]
    return np.concatenate(last).astype(np.float32)


def _checked(logits: Array, tokens: Tokens, vocabulary: int) -> Array:
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape or logits.shape[2] < vocabulary:
        raise CalibrationError(
            f"sampling: needs logits {[*tokens.shape, vocabulary]}, not {list(logits.shape)}; give --calib"
        )
    if not np.isfinite(logits[:, -1]).all():
        raise CalibrationError(
            "sampling: the model's logits are not finite, so nothing can be drawn; give --calib"
        )
    return logits[:, :, :vocabulary]


def _draw(logits: npt.NDArray[np.float32], top_k: int, rng: np.random.Generator) -> Tokens:
    """One token id for each row, int64 [B, 1], by the Gumbel trick: argmax(logit + noise)."""
    kept = min(top_k, logits.shape[1])
    top = np.argpartition(logits, -kept, axis=1)[:, -kept:]
    noisy = np.take_along_axis(logits, top, axis=1) + rng.gumbel(size=top.shape)
    return np.take_along_axis(top, noisy.argmax(axis=1)[:, None], axis=1).astype(np.int64)


def _sizes(spec: InputSpec, symbols: dict[str, int], free_size: int) -> list[int]:
    sizes = []
    for axis, size in enumerate(spec.shape):
        default = 1 if axis == 0 else free_size
        known = symbols.setdefault(size, default) if isinstance(size, str) else size
        sizes.append(default if known is None else known)
    return sizes


def _random(spec: InputSpec, shape: list[int], high: int | None, rng: np.random.Generator) -> Array:
    if spec.dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        low = 0 if high is not None or spec.dtype.itemsize > 1 else int(limits.min)
        above = high if high is not None else 2 if spec.dtype.itemsize > 1 else int(limits.max) + 1
        return rng.integers(low, above, shape).astype(spec.dtype)
    if spec.dtype.kind in "fV":
        return rng.standard_normal(shape).astype(spec.dtype)
    raise CalibrationError(f"{spec.name}: no random values for {spec.dtype}; give data")
