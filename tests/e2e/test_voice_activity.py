"""A model like those that detect speech: for each sampling rate a branch, in it a loop over frames with a convolution and a gated cell.

At 8 kHz: frames of 256 samples (32 ms), a convolution of 64 filters 32 wide every 16 samples, Relu, the mean over the frame, a minimal
gated unit of 64 (Zhou et al. 2016: f = sigmoid(x Wf + h Uf), h += f (tanh(x Wh + h Uh) - h)), and a readout. All weights are random but the
readout's, which least squares fit to bursts of a buzzing voice (harmonics of 100 to 250 Hz under a slow envelope) in noise.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.e2e.test_static_bodies import running_inside
from tests.small_models import Array, make_model, run, save_model, weight

FRAME, RATE, FRAMES = 256, 8000, 120
# Of a probability between 0 and 1: the state carries its errors of 1 % of its range from frame to frame.
CLOSE = 0.1
BRANCH = (
    "{name} () => (float[T] p{n}) {{ none{n} = Constant<value_float=0.0>() start{n} = Expand(none{n}, one_state) last{n}, p{n} ="
    " Loop(count, , start{n}) <body = {name}_frame (int64 i{n}, bool c{n}, float[1,64] h{n}) => (bool d{n}, float[1,64] g{n}, float o{n}) {{"
    " d{n} = Identity(c{n}) s{n} = Gather(frames, i{n}) f{n} = Reshape(s{n}, one_frame)"
    " [filter{n}] w{n} = Conv<strides=[{stride}]>(f{n}, filters{n}, bias{n}) r{n} = Relu(w{n}) e{n} = GlobalAveragePool(r{n})"
    " x{n} = Reshape(e{n}, one_state) [into_gate{n}] a{n} = MatMul(x{n}, into_gate) [over_gate{n}] b{n} = MatMul(h{n}, over_gate)"
    " ab{n} = Add(a{n}, b{n}) gate{n} = Sigmoid(ab{n}) [into{n}] u{n} = MatMul(x{n}, into) [over{n}] v{n} = MatMul(h{n}, over)"
    " uv{n} = Add(u{n}, v{n}) new{n} = Tanh(uv{n}) change{n} = Sub(new{n}, h{n}) part{n} = Mul(gate{n}, change{n}) g{n} = Add(h{n}, part{n})"
    " [read{n}] y{n} = MatMul(g{n}, read) z{n} = Add(y{n}, shift) l{n} = Sigmoid(z{n}) o{n} = Squeeze(l{n}) }}> }}"
)


def _model(read: Array, shift: float, states: bool = False) -> onnx.ModelProto:
    narrow, wide = BRANCH.format(name="t", n=8, stride=16), BRANCH.format(name="e", n=16, stride=32)
    text = (
        "g (float[T,N] frames, int64 rate) => (float[T] p) { shape = Shape(frames) count = Gather(shape, first)"
        f" narrow = Equal(rate, eight) p = If(narrow) <then_branch = {narrow}, else_branch = {wide}> }}"
    )
    if states:  # the cell's in place of the probabilities
        for n in (8, 16):
            text = text.replace(f"Squeeze(l{n})", f"Squeeze(g{n})").replace(f"float o{n}", f"float[64] o{n}")
        text = text.replace("float[T] p", "float[T,64] p")
    rng = np.random.default_rng(0)
    constants: dict[str, Array] = {
        "filters8": weight(64, 1, 32, scale=0.5), "bias8": weight(64, seed=1, scale=0.1), "filters16": weight(64, 1, 64, seed=2, scale=0.4),
        "bias16": weight(64, seed=3, scale=0.1), "into_gate": weight(64, 64, seed=4, scale=0.5), "over_gate": weight(64, 64, seed=5),
        "into": weight(64, 64, seed=6, scale=0.5), "over": 0.9 * np.linalg.qr(rng.standard_normal((64, 64)))[0].astype(np.float32),
        "read": read.astype(np.float32), "shift": np.array(shift, np.float32), "first": np.array(0), "eight": np.array(RATE),
        "one_state": np.array([1, 64]), "one_frame": np.array([1, 1, -1]),
    }  # fmt: skip
    return make_model(text, constants)


def _sound(seed: int) -> tuple[Array, Array]:
    """Frames [FRAMES, FRAME] of float32, and whether a voice is in each."""
    rng = np.random.default_rng(seed)
    speaks = np.zeros(FRAMES, bool)
    for start in rng.integers(0, FRAMES - 20, 3):
        speaks[start : start + 20] = True
    time = np.arange(FRAMES * FRAME) / RATE
    pitch = rng.uniform(100, 250)
    voice = sum(np.sin(2 * np.pi * pitch * k * time + rng.uniform(0, 6)) / k for k in range(1, 12))
    envelope = np.repeat(speaks, FRAME) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time))
    sound = 0.3 * envelope * voice + 0.02 * rng.standard_normal(time.size)
    return sound.reshape(FRAMES, FRAME).astype(np.float32), speaks


def _fitted() -> onnx.ModelProto:
    """The readout by ridge regression onto +3 and -3 before the last sigmoid, from states that the model itself computes."""
    states, targets = [], []
    for seed in range(6):
        frames, speaks = _sound(seed)
        states.append(
            run(_model(np.zeros((64, 1)), 0.0, states=True), {"frames": frames, "rate": np.array(RATE)})["p"]
        )
        targets.append(np.where(speaks, 3.0, -3.0))
    design = np.c_[np.concatenate(states), np.ones(6 * FRAMES)]
    found = np.linalg.solve(design.T @ design + 0.1 * np.eye(65), design.T @ np.concatenate(targets))
    return _model(found[:64, None], float(found[64]))


@pytest.mark.parametrize("both", [True, False])
def test_speech_is_detected_in_integers(both: bool, tmp_path: Path) -> None:
    model = _fitted()
    path, data = save_model(model, tmp_path), tmp_path / "sounds"
    data.mkdir()
    for seed in range(4):
        rate = 2 * RATE if both and seed % 2 else RATE
        frames = _sound(seed)[0]
        np.savez(
            data / f"{seed}.npz",
            frames=frames.reshape(60, 512) if rate > RATE else frames,
            rate=np.array(rate),
        )
    given = [str(path), "--recipe", "w8a8-static", "--calib", str(data), "-o", str(tmp_path / "out")]
    program = "import sys; from qcompiler.cli import main; main(sys.argv[1:])"
    result = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    said = result.stdout + result.stderr
    assert ("else_branch of If" in said and "never reached" in said) is not both
    inside = running_inside(tmp_path / "out" / "model.onnx", tmp_path)
    branches = 2 if both else 1
    assert inside["QLinearConv"] == branches
    assert inside["MatMulIntegerToFloat"] >= 4 * branches
    frames, speaks = _sound(9)
    feed = {"frames": frames, "rate": np.array(RATE)}
    reference, found = (run(each, feed)["p"] for each in (model, tmp_path / "out" / "model.onnx"))
    assert np.abs(found - reference).max() < CLOSE
    for probabilities in (reference, found):
        assert np.mean((probabilities > 0.5) == speaks) > 0.9
