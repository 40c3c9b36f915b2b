"""Factors that one layer was given and the next one takes back, beside scales that are merely wrong."""

import math
from pathlib import Path

import numpy as np
import pytest

from qcompiler.quant.tensor_difference import TensorDifference
from qcompiler.report.alignment import align
from qcompiler.report.moved_factors import MovedFactors
from qcompiler.report.tapped_model import open_tapped
from qcompiler.report.tensor_errors import RESCALED, TURNED, TensorError, tensor_errors
from tests.small_models import Array, make_model, save_model, weight

GATED = """g (float[M,64] x) => (float[M,32] y) {
    [gate] g = MatMul(x, w_gate) [s] s = Sigmoid(g) [up] u = MatMul(x, w_up) [m] m = Mul(s, u) [down] y = MatMul(m, w_down) }"""
IMAGES = """g (float[B,3,8,8] x) => (float[B,4,8,8] y) {
    [c1] h = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w1) [r] r = Relu(h)
    [c2] y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r, w2) }"""
GROUPED = """g (float[1,T,64] x) => (float[1,T,32] y) {
    [v] v = MatMul(x, w_v) [split] p = Reshape(v, heads) [turn] t = Transpose<perm = [0, 2, 1, 3]>(p)
    [one] e = Unsqueeze(t, two) [more] f = Expand(e, repeats) [all] a = Reshape(f, four)
    [att] o = MatMul(mix, a) [back] b = Transpose<perm = [0, 2, 1, 3]>(o) [join] j = Reshape(b, flat) [o] y = MatMul(j, w_o) }"""


def noisy(array: Array, part: float, seed: int) -> Array:
    """With noise of ``part`` of its own deviation."""
    noise = np.random.default_rng(seed).normal(0, part * float(array.std()), array.shape)
    return (array + noise).astype(np.float32)


def errors_of(
    folder: Path,
    text: str,
    arrays: dict[str, Array],
    changes: dict[str, Array],
    feeds: list[dict[str, Array]],
) -> dict[str, TensorError]:
    paths = [
        save_model(make_model(text, each), folder, f"{name}.onnx")
        for name, each in (("a", arrays), ("b", {**arrays, **changes}))
    ]
    with open_tapped(paths[0]) as theirs, open_tapped(paths[1]) as ours:
        alignment = align(theirs.model, ours.model)
        found = tensor_errors(theirs, ours, alignment, alignment.layers, feeds)
    return {error.name: error for error in found.values}


def gated() -> tuple[dict[str, Array], list[dict[str, Array]]]:
    arrays = {"w_gate": weight(64, 48), "w_up": weight(64, 48, seed=1), "w_down": weight(48, 32, seed=2)}
    return arrays, [{"x": weight(200, 64, seed=seed, scale=1.0)} for seed in (5, 6)]


def factors(count: int = 48) -> Array:
    """Of 15 % and so a little over the noise of the weights: 16 dB, and 20 dB of noise."""
    return np.exp(np.random.default_rng(3).normal(0, 0.15, count)).astype(np.float32)


@pytest.mark.parametrize("taken_back", [True, False])
def test_small_factors_are_told_by_the_weights_that_read_them(taken_back: bool, tmp_path: Path) -> None:
    arrays, feeds = gated()
    moved = factors()
    down = noisy(arrays["w_down"], 0.1, 9)
    changes = {
        "w_up": noisy(arrays["w_up"], 0.1, 8) * moved,
        "w_down": down / moved[:, None] if taken_back else down,
    }
    up = errors_of(tmp_path, GATED, arrays, changes, feeds)["u"]
    assert up.relation == (RESCALED if taken_back else "")
    # Noise of a tenth is 20 dB; channels are of about one power.
    as_is = -10 * math.log10(float(np.square(moved - 1).mean() + 0.01 * np.square(moved).mean()))
    assert up.sqnr_db == pytest.approx(20 if taken_back else as_is, abs=1.0)


def test_a_wrong_scale_among_moved_factors_stays_in_the_figure(tmp_path: Path) -> None:
    arrays, feeds = gated()
    moved, wrong = factors(), np.ones(48, np.float32)
    wrong[7] = 3.0
    changes = {"w_up": arrays["w_up"] * moved * wrong, "w_down": arrays["w_down"] / moved[:, None]}
    up = errors_of(tmp_path, GATED, arrays, changes, feeds)["u"]
    # One channel of 48 has an error of twice itself: 10 log10(48 / 4).
    assert up.sqnr_db == pytest.approx(10 * math.log10(48 / 4), abs=1.0)


@pytest.mark.parametrize("others", ["", "[more] z = Tanh(u)", "[more] z = Add(u, u)"])
def test_another_reader_takes_nothing_back(others: str, tmp_path: Path) -> None:
    arrays, feeds = gated()
    moved = factors()
    output = ", float[M,48] z" if others else ""
    paths = [
        save_model(
            make_model(GATED.replace("}", f"{others} }}").replace("y) {", f"y{output}) {{"), each),
            tmp_path,
            name,
        )
        for name, each in (
            ("a.onnx", arrays),
            (
                "b.onnx",
                {**arrays, "w_up": arrays["w_up"] * moved, "w_down": arrays["w_down"] / moved[:, None]},
            ),
        )
    ]
    u = feeds[0]["x"] @ arrays["w_up"]
    difference = TensorDifference()
    difference.add(u, u * moved)
    with open_tapped(paths[0]) as theirs, open_tapped(paths[1]) as ours:
        found = MovedFactors(theirs.model, ours.model).rescaled_sqnr_db("u", difference)
    if others:
        assert found is None
    else:
        assert found is not None and found > 100  # of float32


def test_layers_of_another_model_are_not_made_better(tmp_path: Path) -> None:
    """The same graph with other weights, of another size too: a factor for each channel would always explain some of it."""
    arrays, feeds = gated()
    changes = {
        name: weight(*array.shape, seed=20 + place, scale=scale)
        for place, (scale, (name, array)) in enumerate(zip((0.3, 3.0, 0.1), arrays.items(), strict=True))
    }
    errors = errors_of(tmp_path, GATED, arrays, changes, feeds)
    assert all(error.relation in ("", TURNED) for error in errors.values())
    assert errors["u"].sqnr_db < -10


def test_channels_of_images(tmp_path: Path) -> None:
    arrays = {"w1": weight(8, 3 * 9).reshape(8, 3, 3, 3), "w2": weight(4, 8 * 9, seed=1).reshape(4, 8, 3, 3)}
    feeds = [{"x": weight(4 * 3 * 64, 1, seed=seed, scale=1.0).reshape(4, 3, 8, 8)} for seed in (5, 6)]
    moved = factors(8) ** 3
    w1 = noisy(arrays["w1"], 0.2, 8) * moved[:, None, None, None]
    changes = {"w1": w1, "w2": arrays["w2"] / moved[None, :, None, None]}
    assert errors_of(tmp_path, IMAGES, arrays, changes, feeds)["h"].relation == RESCALED
    assert errors_of(tmp_path, IMAGES, arrays, {"w1": w1}, feeds)["h"].relation == ""


def test_a_reader_whose_rows_have_factors_of_their_own(tmp_path: Path) -> None:
    """All of them large: they are not read as factors of what goes in."""
    text = "g (float[M,32] x) => (float[M,16] y) { [a] h = MatMul(x, w1) [r] r = Relu(h) [b] i = MatMul(r, w2) [c] y = MatMul(i, w3) }"
    arrays = {"w1": weight(32, 24), "w2": weight(24, 20, seed=1), "w3": weight(20, 16, seed=2)}
    first, second = factors(24), 3 * factors(20)
    changes = {
        "w1": noisy(arrays["w1"], 0.1, 8) * first,
        "w2": arrays["w2"] / first[:, None] * second,
        "w3": arrays["w3"] / second[:, None],
    }
    errors = errors_of(tmp_path, text, arrays, changes, [{"x": weight(200, 32, seed=5, scale=1.0)}])
    assert [errors[name].relation for name in "hiy"] == [RESCALED, RESCALED, ""]
    assert errors["h"].sqnr_db == pytest.approx(20, abs=1.5)


def test_heads_that_several_heads_read(tmp_path: Path) -> None:
    """2 heads of values of 8, each read by 2 heads of queries."""
    rng = np.random.default_rng(1)
    ints = {
        "heads": [1, -1, 2, 8],
        "two": [2],
        "repeats": [1, 2, 2, 1, 8],
        "four": [1, 4, -1, 8],
        "flat": [1, -1, 32],
    }
    arrays = {name: np.array(numbers, np.int64) for name, numbers in ints.items()}
    arrays |= {"w_v": weight(64, 16), "w_o": weight(32, 32, seed=1)}
    arrays["mix"] = rng.dirichlet(np.ones(24), (1, 4, 24)).astype(np.float32)
    feeds = [{"x": weight(24, 64, seed=seed, scale=1.0)[None]} for seed in (5, 6)]
    moved = factors(16)
    read = np.repeat(moved.reshape(2, 1, 8), 2, axis=1).reshape(-1)
    v = noisy(arrays["w_v"], 0.1, 8) * moved
    taken_back = errors_of(tmp_path, GROUPED, arrays, {"w_v": v, "w_o": arrays["w_o"] / read[:, None]}, feeds)
    assert taken_back["v"].relation == RESCALED and taken_back["v"].sqnr_db == pytest.approx(20, abs=1.0)
    assert errors_of(tmp_path, GROUPED, arrays, {"w_v": v}, feeds)["v"].relation == ""
