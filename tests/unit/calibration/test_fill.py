"""Feeds made complete for the inputs that exported models really have, and the errors for what cannot be."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qcompiler.calibration.data import TOKENS, Feed
from qcompiler.calibration.fill import InputSpec, complete_feed, is_filled, token_input
from qcompiler.errors import CalibrationError


def spec(name: str, dtype: Any, *shape: int | str | None) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


IDS = spec("input_ids", np.int64, "batch", "sequence")
PAST = spec("past_key_values.0.key", np.float32, "batch", 3, "past_sequence", 64)
TOKENS_FEED: Feed = {TOKENS: np.array([[5, 6, 7]])}


def refused(feed: Feed, *inputs: InputSpec) -> str:
    with pytest.raises(CalibrationError) as caught:
        complete_feed(feed, inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_decoder_with_a_cache() -> None:
    inputs = [
        IDS,
        spec("attention_mask", np.int64, "batch", "past_sequence + sequence"),
        spec("position_ids", np.int64, "batch", "sequence"),
        PAST,
        spec("past_key_values.0.value", np.float16, "batch", 3, "past_sequence", 64),
        spec("use_cache_branch", np.bool_, 1),
    ]
    feed = complete_feed({TOKENS: np.zeros((2, 3), dtype=np.int64)}, inputs)
    assert list(feed) == [each.name for each in inputs]
    assert feed["attention_mask"].tolist() == [[1, 1, 1]] * 2
    assert feed["position_ids"].tolist() == [[0, 1, 2]] * 2
    assert feed["past_key_values.0.key"].shape == (2, 3, 0, 64)
    assert feed["past_key_values.0.value"].dtype == np.float16
    assert feed["use_cache_branch"].tolist() == [False]
    assert all(feed[each.name].dtype == each.dtype for each in inputs)


def test_positions_and_mask_follow_a_given_past() -> None:
    inputs = [
        IDS,
        spec("attention_mask", np.int32, "batch", "total"),
        spec("position_ids", np.int64, "batch", "sequence"),
        PAST,
        spec("past_key_values.0.value", np.float32, "batch", 3, "past_sequence", 64),
    ]
    feed = complete_feed({**TOKENS_FEED, PAST.name: np.ones((1, 3, 4, 64), dtype=np.float32)}, inputs)
    assert feed["position_ids"].tolist() == [[4, 5, 6]]
    assert feed["attention_mask"].tolist() == [[1] * 7]
    assert feed["past_key_values.0.value"].shape == (1, 3, 4, 64)


def test_a_cache_of_fixed_size_is_masked_out() -> None:
    inputs = [
        IDS,
        spec("attention_mask", np.float32, 1, 7),
        spec("position_ids", np.int64, 1, "sequence"),
        spec("key_cache_0", np.float32, 1, 3, 4, 64),
    ]
    feed = complete_feed(TOKENS_FEED, inputs)
    assert feed["attention_mask"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert feed["position_ids"].tolist() == [[0, 1, 2]]


def test_mask_over_the_sequence_alone() -> None:
    mask = spec("attention_mask", np.bool_, "batch", "sequence")
    assert complete_feed(TOKENS_FEED, [IDS, mask])["attention_mask"].tolist() == [[True] * 3]


def test_encoder_and_runtime_inputs() -> None:
    inputs = [
        IDS,
        spec("token_type_ids", np.int64, "batch", "sequence"),
        spec("cache_position", np.int64, "sequence"),
        spec("position_ids", np.int64, 3, "batch", "sequence"),
        spec("seqlens_k", np.int32, "batch"),
        spec("total_sequence_length", np.int32),
    ]
    feed = complete_feed(TOKENS_FEED, inputs)
    assert feed["token_type_ids"].tolist() == [[0, 0, 0]]
    assert feed["cache_position"].tolist() == [0, 1, 2]
    assert feed["position_ids"].tolist() == [[[0, 1, 2]]] * 3
    assert feed["seqlens_k"].tolist() == [2]
    assert feed["total_sequence_length"].shape == () and feed["total_sequence_length"] == 3


def test_sizes_come_from_embeddings_where_there_are_no_tokens() -> None:
    embeds = spec("inputs_embeds", np.float32, "batch", "sequence", 8)
    mask = spec("attention_mask", np.int64, "batch", "sequence")
    feed = complete_feed({"inputs_embeds": np.zeros((2, 5, 8), dtype=np.float32)}, [embeds, mask])
    assert feed["attention_mask"].shape == (2, 5)


def test_tokens_find_their_input() -> None:
    other = spec("ids", np.int32, "b", "s")
    mask = spec("attention_mask", np.int32, "b", "s")
    assert token_input([mask, other]) == "ids"
    assert token_input([mask, IDS, other]) == "input_ids"
    assert token_input([other, spec("more", np.int64, "b", "s")]) is None
    assert token_input([spec("x", np.float32, "b", "s")]) is None
    feed = complete_feed(TOKENS_FEED, [mask, other])
    assert feed["ids"].tolist() == [[5, 6, 7]] and feed["ids"].dtype == np.int32


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([1, 2], dtype=np.int32), np.int64),
        (np.array([1, 255], dtype=np.int64), np.uint8),
        (np.array([0, 1]), np.bool_),
        (np.array([True, False]), np.int64),
        (np.array([1, 2]), np.float32),
        (np.array([0.1], dtype=np.float16), np.float32),
        (np.array([0.1]), np.float32),
        (np.array([0.1, -np.inf]), np.float16),
        (np.array([0.1]), ml_dtypes.bfloat16),
        (np.array([0.1], dtype=ml_dtypes.bfloat16), np.float32),
        (np.array([0.5], dtype=np.float32), np.float16),
    ],
)
def test_casts_that_keep_the_values_are_silent(array: np.ndarray[Any, Any], dtype: Any) -> None:
    cast = complete_feed({"x": array}, [spec("x", dtype, "n")])["x"]
    assert cast.dtype == np.dtype(dtype)
    wide = (cast.astype(np.float64), array.astype(np.float64))
    assert np.allclose(*wide, rtol=2**-8, atol=0)  # bfloat16 keeps 8 bits


def test_float32_data_for_a_float16_model_is_rounded() -> None:
    spec = InputSpec("x", np.dtype(np.float16), (1,))
    filled = complete_feed({"x": np.array([0.1], np.float32)}, [spec])["x"]
    assert filled.dtype == np.float16
    assert filled[0] == np.float16(0.1)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([256]), np.uint8),
        (np.array([-1]), np.uint8),
        (np.array([0.5]), np.int64),
        (np.array([1e6], dtype=np.float32), np.float16),
        (np.array([1e6]), np.float16),
        (np.array([2**24 + 1]), np.float32),
        (np.array(["a"]), np.int64),
        (np.array([1j]), np.float32),
    ],
)
def test_casts_that_lose_values_are_refused(array: np.ndarray[Any, Any], dtype: Any) -> None:
    assert f"x: the model takes {np.dtype(dtype)}, which cannot hold" in refused(
        {"x": array}, spec("x", dtype, "n")
    )


def test_wrong_names() -> None:
    assert "no input 'input_idz'; did you mean 'input_ids'?" in refused({"input_idz": np.zeros((1, 2))}, IDS)
    assert "no input 'zzz'; use one of: " in refused({"zzz": np.zeros((1, 2))}, IDS)


def test_wrong_shapes() -> None:
    assert "input_ids: the model takes int64 [batch, sequence], the data has 1 dimensions [3]" in refused(
        {TOKENS: np.arange(3)}, IDS
    )
    image = spec("image", np.float32, None, 3, 224, 224)
    assert "image: dimension 2 must be 224, the data has [1, 3, 32, 224]" in refused(
        {"image": np.zeros((1, 3, 32, 224), dtype=np.float32)}, image
    )
    mask = spec("attention_mask", np.int64, "batch", "sequence")
    assert "dimension 1 must be 3 (sequence is 3 in another input)" in refused(
        {**TOKENS_FEED, "attention_mask": np.ones((1, 4), dtype=np.int64)}, IDS, mask
    )
    assert "attention_mask: dimension 1 must be 9" in refused(
        TOKENS_FEED, IDS, spec("attention_mask", np.int64, 1, 9)
    )


def test_what_cannot_be_filled_in() -> None:
    image = spec("pixel_values", np.float32, "batch", 3, 8, 8)
    assert (
        "does not give pixel_values (float32 [batch, 3, 8, 8]), which cannot be filled in; it gives input_ids"
        in (refused(TOKENS_FEED, IDS, image))
    )
    vague = spec("past.0", np.float32, "batch", "heads", "past", 64)
    assert "past.0: cannot tell which dimension" in refused(TOKENS_FEED, IDS, vague)
    square = spec("attention_mask", np.float32, "batch", 1, "sequence", "total")
    assert not is_filled(square)
    assert "does not give attention_mask" in refused(TOKENS_FEED, IDS, square)


def test_an_input_with_a_default_may_be_left_out() -> None:
    default = np.arange(6, dtype=np.int64).reshape(2, 3)
    inputs = [
        InputSpec("table", np.dtype(np.int64), (2, 3), default),
        InputSpec("ids", np.dtype(np.int64), ("B", "S")),
    ]
    assert token_input(inputs) == "ids"
    ids = np.zeros((1, 5), np.int64)
    complete = complete_feed({"input_ids": ids}, inputs)
    assert list(complete) == ["table", "ids"]
    np.testing.assert_array_equal(complete["table"], default)
    given = complete_feed({"table": default + 1, "ids": ids}, inputs)
    np.testing.assert_array_equal(given["table"], default + 1)
