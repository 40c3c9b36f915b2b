"""The forecast of memory grows with what calibration holds, and stays above what is really used."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.pass_manager import run_passes
from qcompiler.pipeline import plan_weights, preparing_passes
from qcompiler.recipe import CalibrationSettings, Recipe
from qcompiler.recipe.plan import FIXED_BYTES
from qcompiler.recipe.planned_weight import FACTOR_COPIES
from qcompiler.report.memory_forecast import (
    BORDER_FACTOR,
    GRADIENT_FACTOR,
    HEAP_BYTES,
    RUN_FACTOR,
    SCORED_BYTES,
    enough_memory,
    forecast_peak_bytes,
)
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


@pytest.mark.parametrize(("samples", "length"), [(1, 2048), (16, 2048), (16, 4096)])
def test_activations_of_a_sample_and_borders_of_all(samples: int, length: int) -> None:
    hidden, scores = 4 * length * 64, 4 * length * length
    run = RUN_FACTOR * (2 * scores + hidden)  # the scores, their softmax and the embedded tokens
    borders = BORDER_FACTOR * samples * hidden
    assert forecast("w4a16-awq", samples, length) - FIXED_BYTES - run == pytest.approx(borders, rel=0.02)


def test_borders_past_the_share_of_the_limit_are_in_files() -> None:
    small, large = (forecast("w4a16-awq", samples, 1024, limit=1 << 24) for samples in (10_000, 20_000))
    assert small == large


def test_a_feed_of_many_rows_takes_as_many_times_more() -> None:
    one, eight = (forecast("w4a16-awq", 1, 2048, rows=rows) - FIXED_BYTES for rows in (1, 8))
    assert eight == pytest.approx(8 * one, rel=0.01)


def test_tuning_keeps_the_activations_of_a_segment_and_a_second_stream() -> None:
    length, samples = 2048, 16
    hidden, scores = 4 * length * 64, 4 * length * length
    activations = (
        2 * scores + 5 * hidden
    )  # with the transposed keys; the table's rows are made in another segment or this one
    borders = 2 * BORDER_FACTOR * samples * hidden
    tuned = forecast("w4a16-autoround", samples, length) - FIXED_BYTES - borders
    held = RUN_FACTOR * (2 * scores + hidden)
    assert tuned >= held
    assert tuned == pytest.approx(max(held, GRADIENT_FACTOR * activations), rel=0.2)


CHAIN = "g (float[M,{k}] x) => (float[M,{k}] y) {{ h = MatMul (x, up) r = Relu (h) d = MatMul (r, down) y = Add (x, d) }}"


def of_weights(recipe: str, k: int, inner: int, *settings: str) -> int:
    """The forecast without what is fixed or kept by the heap, of a product [k, inner] and one back on one row."""
    model = ir.from_proto(make_model(CHAIN.format(k=k), {"up": weight(k, inner), "down": weight(inner, k)}))
    loaded = Recipe.load(recipe).with_settings(settings)
    run_passes(model, preparing_passes(loaded), [])
    feed = {"x": np.zeros((1, k), np.float32)}
    plan = plan_weights(model, loaded)
    return forecast_peak_bytes(model, plan, CalibrationSettings(1, 1), feed, LIMIT) - FIXED_BYTES - HEAP_BYTES


def test_gptq_holds_one_hessian_and_what_it_is_factored_with() -> None:
    square, numbers = 4 * 2048**2, 64 * 2048
    assert of_weights("w4a16-gptq", 64, 2048) == pytest.approx(numbers + FACTOR_COPIES * square, rel=0.01)


def test_a_scale_that_moves_wants_all_hessians_of_the_segment() -> None:
    alone, moved = (of_weights(recipe, 512, 2048) for recipe in ("w4a16-gptq", "w4a16-best"))
    waiting, copy = 4 * 512**2, 4 * 512 * 2048  # of the first input, and of the weight with its scale
    assert moved - alone == pytest.approx(waiting + copy, rel=0.01)


def test_scores_of_several_samples_wait_for_the_last() -> None:
    n, k, count = 4096, 256, 24  # all in one segment: nothing joins them before the end
    results = [f"y{i}" for i in range(count)]
    products = " ".join(f"{y} = MatMul (x, w_{y})" for y in results)
    text = (
        f"g (float[M,{k}] x) => (float[M,N] y) {{ {products} y = Concat <axis = 1> ({', '.join(results)}) }}"
    )
    model = ir.from_proto(make_model(text, {f"w_{y}": np.zeros((k, n), np.float32) for y in results}))
    loaded = Recipe.load("w4a16-rtn").with_settings(
        ["mixed.budget=5bpw", "mixed.sensitivity=fisher", "mixed.samples=2"]
    )
    run_passes(model, preparing_passes(loaded), [])
    feed = {"x": np.zeros((1, k), np.float32)}
    found = forecast_peak_bytes(model, plan_weights(model, loaded), CalibrationSettings(2, 1), feed, LIMIT)
    # Activations of one row are 3 %.
    assert found - FIXED_BYTES == pytest.approx((SCORED_BYTES + 4 * count) * n * k, rel=0.04)


def test_without_calibration_a_weight_is_read_in_blocks() -> None:
    small, large = (of_weights("w4a16-rtn", 4096, inner) for inner in (2048, 4096))
    assert large - small == 2 * 4096 * 2048  # codes, twice; blocks are full in both


def test_a_float_head_that_is_turned_is_laid_out_anew() -> None:
    text = "g (int64[B,S] i) => (float[B,S,20000] y) { e = Gather (t, i) h = MatMul (e, w) q = Transpose <perm = [1, 0]> (t) y = MatMul (h, q) }"
    weights = {"t": weight(20_000, 512), "w": weight(512, 512)}
    loaded = Recipe.load("w4a16-rtn").with_settings(["head=float", "embedding=float"])
    model = ir.from_proto(make_model(text, weights))
    run_passes(model, preparing_passes(loaded), [])
    assert plan_weights(model, loaded).forecast_peak_bytes() == FIXED_BYTES + 2 * 4 * 20_000 * 512


def test_a_limit_that_is_enough_has_room_for_what_grows_with_it() -> None:
    """Borders of 1,000 MiB, kept twice up to a quarter of the limit each, beside 300 MiB."""
    mib = 1 << 20

    def forecast(limit: int) -> int:
        return 300 * mib + 1 + 2 * min(1000 * mib, limit // 4)

    enough = enough_memory(forecast, forecast(10 * mib))
    assert forecast(enough) <= enough and enough % mib == 0
    # 300 MiB and a byte, and half of the limit again: 600 MiB and two bytes, and a MiB of rounding up
    assert enough <= 602 * mib
