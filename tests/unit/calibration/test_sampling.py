"""Data made without data: sampled tokens follow the model's distribution; random feeds fit the inputs."""

import numpy as np
import numpy.typing as npt
import pytest

from qcompiler.calibration.fill import InputSpec
from qcompiler.calibration.sampling import is_causal, random_feeds, sample_tokens
from qcompiler.errors import CalibrationError

Tokens = npt.NDArray[np.int64]
V = 12


def chain(tokens: Tokens) -> npt.NDArray[np.float32]:
    """A Markov chain: after t comes t + 1 with probability 3/4, t + 2 with 1/4."""
    logits = np.full((*tokens.shape, V), -30, dtype=np.float32)
    np.put_along_axis(logits, (tokens[..., None] + 1) % V, np.log(0.75), axis=-1)
    np.put_along_axis(logits, (tokens[..., None] + 2) % V, np.log(0.25), axis=-1)
    return logits


def test_sampled_tokens_follow_the_model() -> None:
    tokens = sample_tokens(chain, V, sequences=64, length=50, seed=0)
    assert tokens.shape == (64, 50) and tokens.dtype == np.int64
    steps = np.diff(tokens, axis=1) % V
    assert set(np.unique(steps)) == {1, 2}
    assert abs((steps == 1).mean() - 0.75) < 4 * (0.75 * 0.25 / steps.size) ** 0.5  # four standard errors


def test_the_seed_decides() -> None:
    first, again, other = (sample_tokens(chain, V, 3, 20, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("sequences", "length"), [(1, 1), (1, 130), (2, 129), (40, 7), (5, 1000)])
def test_any_number_and_length(sequences: int, length: int) -> None:
    assert sample_tokens(chain, V, sequences, length, seed=0).shape == (sequences, length)


def test_windows_are_short_and_grow_from_the_context() -> None:
    seen: list[int] = []

    def run(tokens: Tokens) -> npt.NDArray[np.float32]:
        seen.append(tokens.shape[1])
        return chain(tokens)

    sample_tokens(run, V, 2, 20, seed=0, context=3)
    assert seen[:10] == [1, 2, 3, 4, 5, 3, 4, 5, 3, 4]
    assert set(seen[2:]) == {3, 4, 5}


def test_top_k_of_one_is_greedy_and_temperature_flattens() -> None:
    assert set(np.unique(np.diff(sample_tokens(chain, V, 2, 30, 0, top_k=1), axis=1) % V)) == {1}
    hot = sample_tokens(chain, V, 8, 50, 0, temperature=100.0)
    assert len(np.unique(np.diff(hot, axis=1) % V)) > 2


def test_padding_of_the_vocabulary_is_never_drawn() -> None:
    def padded(tokens: Tokens) -> npt.NDArray[np.float32]:
        return np.pad(chain(tokens), [(0, 0), (0, 0), (0, 4)], constant_values=99)

    assert sample_tokens(padded, V, 2, 30, 0).max() < V


def test_large_logits_are_run_in_parts_with_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample_tokens(chain, V, 8, 20, seed=0)
    monkeypatch.setattr("qcompiler.calibration.sampling._LOGIT_BYTES", 4 * V * 10)
    assert np.array_equal(sample_tokens(chain, V, 8, 20, seed=0), whole)


def test_progress_counts_to_the_end() -> None:
    calls: list[tuple[int, int]] = []
    sample_tokens(chain, V, 1, 10, 0, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] == len(calls)


def test_logits_that_cannot_be_sampled() -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        sample_tokens(lambda tokens: chain(tokens) * np.float32(np.nan), V, 1, 2, 0)
    with pytest.raises(CalibrationError, match="needs logits"):
        sample_tokens(lambda tokens: chain(tokens)[..., 0], V, 1, 2, 0)
    with pytest.raises(CalibrationError, match="needs logits"):
        sample_tokens(chain, V + 1, 1, 2, 0)


def test_causal_models_are_told_from_others() -> None:
    def both_ways(tokens: Tokens) -> npt.NDArray[np.float32]:
        sums: npt.NDArray[np.float32] = tokens.sum(axis=1).astype(np.float32)[:, None, None]
        return chain(tokens) + sums

    assert is_causal(chain, V, seed=0)
    assert not is_causal(both_ways, V, seed=0)


INPUTS = [
    InputSpec("image", np.dtype(np.float32), ("batch", 3, "height", None)),
    InputSpec("ids", np.dtype(np.int64), ("batch", "sequence")),
    InputSpec("bytes", np.dtype(np.uint8), (4096,)),
    InputSpec("flag", np.dtype(np.bool_), (8,)),
    InputSpec("attention_mask", np.dtype(np.int64), ("batch", "sequence")),
]


def test_random_feeds_fit_the_inputs() -> None:
    feeds = list(random_feeds(INPUTS, 2, seed=0, highs={"ids": 1000}, sizes={"height": 20}))
    assert len(feeds) == 2
    assert feeds[0]["image"].shape == (1, 3, 20, 64) and feeds[0]["image"].dtype == np.float32
    assert abs(feeds[0]["image"].std() - 1) < 0.1  # 3840 normal values: a standard error of 0.011
    assert feeds[0]["ids"].shape == (1, 64) and 500 < feeds[0]["ids"].max() < 1000
    assert feeds[0]["bytes"].min() == 0 and feeds[0]["bytes"].max() == 255
    assert feeds[0]["flag"].dtype == np.bool_
    assert feeds[0]["attention_mask"].tolist() == [[1] * 64]
    assert not np.array_equal(feeds[0]["image"], feeds[1]["image"])


def test_random_feeds_are_seeded_one_by_one() -> None:
    two, three = (list(random_feeds(INPUTS, count, seed=5)) for count in (2, 3))
    assert all(np.array_equal(two[1][name], three[1][name]) for name in two[1])
    assert set(np.unique(two[0]["ids"])) == {0, 1}


def test_random_feeds_cannot_write_text() -> None:
    with pytest.raises(CalibrationError, match="text: no random values"):
        list(random_feeds([InputSpec("text", np.dtype("O"), (1,))], 1, seed=0))
