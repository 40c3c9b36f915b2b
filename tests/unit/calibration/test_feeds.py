"""make_feeds: complete feeds from data, or the model's own where there is none; the same seed gives the same."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

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
    assert made.description == {"source": "sampled from the model", "samples": 2}
    assert len(made.warnings) == 1
    for feed in made.feeds:
        assert feed["input_ids"].shape == (1, 8)
        assert feed["input_ids"].min() >= 0
        assert feed["input_ids"].max() < 40
        np.testing.assert_array_equal(feed["attention_mask"], np.ones((1, 8), np.int64))


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
