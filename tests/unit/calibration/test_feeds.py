"""make_feeds: complete feeds from data, or the model's own where there is none; the same seed gives the same."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.calibration import feeds
from qcompiler.calibration.borders import KeptFeeds
from qcompiler.calibration.feeds import REQUIRED, CalibrationFeeds, make_feeds
from qcompiler.errors import CalibrationError
from qcompiler.passes.normalize import Normalize
from qcompiler.passes.widen_bfloat16 import WidenBfloat16
from tests.small_models import make_model, weight


def _make(
    model: ir.Model, source: Any = None, samples: int = 2, length: int = 8, seed: int = 0
) -> CalibrationFeeds:
    return make_feeds(model, source, None, samples, length, seed, lambda *_: None)


def _language_model(dtype: Any = np.float32, name: str = "float") -> ir.Model:
    """Causal: each position sees itself alone."""
    proto = make_model(
        f"g (int64[B,S] input_ids, int64[B,S] attention_mask) => ({name}[B,S,40] logits) {{ e = Gather(t, input_ids) logits = MatMul(e, w) }}",
        {"t": weight(40, 16, dtype=dtype), "w": weight(16, 40, seed=1, dtype=dtype)},
    )
    model = ir.from_proto(proto)
    Normalize()(model)
    WidenBfloat16()(model)
    return model


@pytest.mark.parametrize(
    ("dtype", "name"), [(np.float32, "float"), (np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16")]
)
def test_a_language_model_speaks_its_own_data(dtype: Any, name: str) -> None:
    made = _make(_language_model(dtype, name))
    assert made.description == {"source": "sampled from the model", "samples": 2, "length": 8}
    assert len(made.warnings) == 1
    for feed in made.feeds:
        assert feed["input_ids"].shape == (1, 8)
        assert feed["input_ids"].min() >= 0
        assert feed["input_ids"].max() < 40
        np.testing.assert_array_equal(feed["attention_mask"], np.ones((1, 8), np.int64))


@pytest.mark.parametrize(
    ("tokenizer", "asked"),
    [(None, "--calib TEXT --tokenizer FILE"), (Path("tokenizer.json"), "--calib TEXT")],
)
def test_a_tokenizer_that_is_there_is_not_asked_for(tokenizer: Path | None, asked: str) -> None:
    (warning,) = make_feeds(_language_model(), None, tokenizer, 2, 8, 0, lambda *_: None).warnings
    assert warning.endswith(f"; give {asked} for better scales")


def test_the_seed_decides() -> None:
    first, second, other = (_make(_language_model(), seed=seed) for seed in (3, 3, 4))
    assert first.sha256 == second.sha256 != other.sha256


def test_any_other_model_gets_random_inputs() -> None:
    model = ir.from_proto(make_model("g (float[B,8] x, int64[B,4] i) => (float[B,8] y, float[B,4,8] z) { y = Neg(x) z = Gather(t, i) }",
                                     {"t": weight(5, 8)}))  # fmt: skip
    made = _make(model, samples=3)
    assert made.description == {"source": "random inputs", "samples": 3}
    assert [feed["x"].dtype for feed in made.feeds] == [np.float32] * 3
    assert max(feed["i"].max() for feed in made.feeds) < 5, "an index stays inside its table"


def _backbone(rows: int) -> ir.Model:
    """Hidden states [B, S, 24], causal, and no head: a norm follows the last linear."""
    proto = make_model(
        "g (int64[B,S] input_ids) => (float[B,S,24] hidden) { e = Gather(t, input_ids) h = MatMul(e, w)"
        " hidden = LayerNormalization(h, g) }",
        {"t": weight(rows, 16), "w": weight(16, 24, seed=1), "g": np.ones(24, np.float32)},
    )
    model = ir.from_proto(proto)
    Normalize()(model)
    return model


@pytest.mark.parametrize("rows", [10, 300])
def test_hidden_states_are_not_sampled_as_if_they_were_logits(rows: int) -> None:
    made = _make(_backbone(rows), samples=4, length=32)
    assert made.description["source"] == "random inputs"
    drawn = np.concatenate([feed["input_ids"].ravel() for feed in made.feeds])
    assert drawn.max() < rows
    assert drawn.max() >= min(rows, 24) - 2, "from the whole table"


def test_sampled_tokens_stay_inside_the_embedding() -> None:
    """Logits padded from 10 to 40; the padding is the likeliest."""
    head = weight(16, 40, seed=1)
    head[:, 10:] = 0
    bias = np.zeros(40, np.float32)
    bias[10:] = 50
    proto = make_model(
        "g (int64[B,S] input_ids) => (float[B,S,40] logits) { i = Cast<to=6>(input_ids) e = Gather(t, i) h = MatMul(e, w) logits = Add(h, b) }",
        {"t": weight(10, 16), "w": head, "b": bias},
    )
    model = ir.from_proto(proto)
    Normalize()(model)
    made = _make(model)
    assert made.description["source"] == "sampled from the model"
    assert max(feed["input_ids"].max() for feed in made.feeds) < 10


def test_a_model_that_fails_while_it_is_tried_gets_random_inputs() -> None:
    """It takes sequences of 2 and no others, and so not those of 8 that tell whether it is causal."""
    proto = make_model(
        "g (int64[B,S] input_ids) => (float[B,S,40] logits) { e = Gather(t, input_ids) p = Add(e, two) logits = MatMul(p, w) }",
        {"t": weight(40, 16), "w": weight(16, 40, seed=1), "two": weight(2, 16)},
    )
    model = ir.from_proto(proto)
    Normalize()(model)
    assert _make(model).description["source"] == "random inputs"


def test_tokens_of_another_tokenizer() -> None:
    with pytest.raises(
        CalibrationError,
        match=r"^feeds from Python: feed 2: token 46923, but the model's vocabulary is 40: is this the model's tokenizer\?$",
    ):
        _make(_language_model(), [{"input_ids": np.array([[1]])}, {"input_ids": np.array([[3, 46923]])}])


def test_a_token_below_0_is_no_token() -> None:
    """Gather would take it from the table's end."""
    with pytest.raises(CalibrationError, match=r"feed 1: token -100; tokens are 0 to 39: leave padding out"):
        _make(_language_model(), [{"input_ids": np.array([[3, -100]])}])


def test_a_feed_without_a_row_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"feed 2: all its arrays are empty"):
        _make(_language_model(), [{"input_ids": np.array([[3]])}, {"input_ids": np.zeros((0, 4), np.int64)}])


def test_an_input_without_a_rank_takes_no_data() -> None:
    model = ir.from_proto(make_model("g (float[M,8] x) => (float[M,8] y) { y = Neg(x) }"))
    model.graph.inputs[0].shape = None
    with pytest.raises(CalibrationError, match=r"^input x: has no shape"):
        _make(model, [{"x": np.zeros((2, 8), np.float32)}])


def test_an_index_past_its_table() -> None:
    model = ir.from_proto(make_model("g (float[B,8] x, int64[B,4] i) => (float[B,8] y, float[B,4,8] z) { y = Neg(x) z = Gather(t, i) }",
                                     {"t": weight(5, 8)}))  # fmt: skip
    with pytest.raises(CalibrationError, match="vocabulary is 5|i holds 5"):
        _make(model, [{"x": weight(1, 8), "i": np.full((1, 4), 5)}])


def test_fewer_feeds_than_asked_for_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    np.savez(path, input_ids=np.arange(4)[None])
    assert _make(_language_model(), path).warnings == [f"{path}: gives 1 of the 2 feeds of calib.samples"]
    assert not _make(_language_model(), path, samples=1).warnings


def test_an_overridable_input_is_fed_its_default() -> None:
    proto = make_model(
        "g (float[B,16] x, float[24] b) => (float[B,24] y) { h = MatMul(x, w) y = Add(h, b) }",
        {"w": weight(16, 24), "b": weight(24)},
    )
    model = ir.from_proto(proto)
    Normalize()(model)
    made = _make(model, [{"x": weight(2, 16)}], samples=1)
    np.testing.assert_array_equal(made.feeds[0]["b"], weight(24))


def test_given_data_is_completed_and_counted() -> None:
    data = [
        {"input_ids": np.arange(4)[None]},
        {"input_ids": np.arange(6)[None]},
        {"input_ids": np.arange(3)[None]},
    ]
    made = _make(_language_model(), data)
    assert [feed["attention_mask"].shape for feed in made.feeds] == [(1, 4), (1, 6)]
    assert not made.warnings
    assert made.sha256 != _make(_language_model(), data[1:]).sha256


def test_no_data_where_it_is_required() -> None:
    with pytest.raises(CalibrationError, match="--calib required"):
        _make(_language_model(), REQUIRED)


@pytest.mark.parametrize("data", [[], iter(())])
def test_data_that_holds_nothing(data: Any) -> None:
    with pytest.raises(CalibrationError, match="no feeds|empty|at least one"):
        _make(_language_model(), data)


def test_feeds_past_the_limit_go_to_the_folder_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "IN_MEMORY", 100)
    model = ir.from_proto(make_model("g (float[M,16] x) => (float[M,16] y) { y = Relu(x) }"))
    given = [{"x": weight(3, 16, seed=seed)} for seed in range(5)]
    kept = make_feeds(model, given, None, 5, 8, 0, lambda *_: None, tmp_path)
    plain = make_feeds(model, given, None, 5, 8, 0, lambda *_: None)
    assert isinstance(kept.feeds, KeptFeeds) and len(kept.feeds) == 5 and kept.sha256 == plain.sha256
    for index in (0, 3, -1):
        np.testing.assert_array_equal(kept.feeds[index]["x"], given[index]["x"])
    assert [feed["x"][0, 0] for feed in kept.feeds[1:3]] == [feed["x"][0, 0] for feed in given[1:3]]
    with pytest.raises(IndexError):
        kept.feeds[5]
