"""The forecast of memory grows with what calibration holds, and stays above what is really used."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.pass_manager import run_passes
from qcompiler.pipeline import plan_weights, preparing_passes
from qcompiler.recipe import CalibrationSettings, Recipe
from qcompiler.recipe.plan import FIXED_BYTES
from qcompiler.report.memory_forecast import BORDER_FACTOR, GRADIENT_FACTOR, RUN_FACTOR, forecast_peak_bytes
from tests.small_models import make_model, weight

# Scores of S x S in the middle: no border, but alive in a run.
ATTENTION = """g (int64[B,S] input_ids) => (float[B,S,64] y) {
    e = Gather (table, input_ids)
    q = MatMul (e, wq)
    t = Transpose <perm = [0, 2, 1]> (e)
    s = MatMul (q, t)
    p = Softmax <axis = -1> (s)
    v = MatMul (p, e)
    y = MatMul (v, wo)
}"""
LIMIT = 4 << 30


def forecast(recipe: str, samples: int, length: int, limit: int = LIMIT, rows: int | None = None) -> int:
    weights = {"table": weight(100, 64), "wq": weight(64, 64, seed=1), "wo": weight(64, 64, seed=2)}
    model = ir.from_proto(make_model(ATTENTION, weights))
    loaded = Recipe.load(recipe)
    run_passes(model, preparing_passes(loaded), [])
    feed = None if rows is None else {"input_ids": np.zeros((rows, length), np.int64)}
    return forecast_peak_bytes(
        model, plan_weights(model, loaded), CalibrationSettings(samples, length), feed, limit
    )


def test_a_recipe_without_calibration_holds_no_activations() -> None:
    assert forecast("w4a16-rtn", 16, 512) == forecast("w4a16-rtn", 64, 2048)


@pytest.mark.parametrize(("samples", "length"), [(1, 1024), (16, 1024), (16, 2048)])
def test_activations_of_a_sample_and_borders_of_all(samples: int, length: int) -> None:
    hidden, scores = 4 * length * 64, 4 * length * length
    run = RUN_FACTOR * (2 * scores + hidden)  # the scores, their softmax and the embedded tokens
    borders = BORDER_FACTOR * samples * hidden
    assert forecast("w4a16-awq", samples, length) - FIXED_BYTES - run == pytest.approx(borders, rel=0.02)


def test_borders_past_the_share_of_the_limit_are_in_files() -> None:
    small, large = (forecast("w4a16-awq", samples, 1024, limit=1 << 24) for samples in (10_000, 20_000))
    assert small == large


def test_a_feed_of_many_rows_takes_as_many_times_more() -> None:
    one, eight = (forecast("w4a16-awq", 1, 1024, rows=rows) - FIXED_BYTES for rows in (1, 8))
    assert eight == pytest.approx(8 * one, rel=0.01)


def test_tuning_keeps_the_activations_of_a_segment_and_a_second_stream() -> None:
    length, samples = 1024, 16
    hidden, scores = 4 * length * 64, 4 * length * length
    activations = (
        2 * scores + 5 * hidden
    )  # with the transposed keys; the table's rows are made in another segment or this one
    borders = 2 * BORDER_FACTOR * samples * hidden
    tuned = forecast("w4a16-autoround", samples, length) - FIXED_BYTES - borders
    held = RUN_FACTOR * (2 * scores + hidden)
    assert tuned >= held
    assert tuned == pytest.approx(max(held, GRADIENT_FACTOR * activations), rel=0.2)
