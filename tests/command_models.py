"""Small models on disk for tests of commands: a perceptron, a decoder with a tied head, an old export; and the command."""

from pathlib import Path

import numpy as np
import onnx
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models

from tests.small_models import make_model, save_model, weight

WIDTH = 64
VOCABULARY = 96
# What is started in the background ignores SIGINT, and so would the commands that it starts.
QCOMPILE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from qcompiler.cli import main; main()"
"""For ``python -c``: the command, which Ctrl-C stops wherever the tests were started."""


def mlp(folder: Path, *, name: str = "float.onnx", spoil: float | None = None) -> Path:
    """x [M, 64] -> MatMul, Relu, MatMul -> y [M, 64]; ``spoil`` overwrites one number of the first weight."""
    first = weight(WIDTH, 128, seed=1)
    if spoil is not None:
        first[3, 5] = spoil
    text = """mlp (float[M,64] x) => (float[M,64] y) {
        hidden = MatMul (x, fc1)
        active = Relu (hidden)
        y = MatMul (active, fc2)
    }"""
    return save_model(make_model(text, {"fc1": first, "fc2": weight(128, WIDTH, seed=2)}), folder, name)


def external_mlp(folder: Path, location: str = "float.onnx.data") -> Path:
    """The same with its weights in a file beside it."""
    path = mlp(folder)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="float.onnx.data", size_threshold=0)
    if location != "float.onnx.data":
        moved = onnx.load(path, load_external_data=False)
        for tensor in moved.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(moved.SerializeToString())
    return path


def decoder(folder: Path) -> Path:
    """input_ids [B, S] -> embedding, two linears, the embedding again as head -> logits [B, S, 96]."""
    text = """decoder (int64[B,S] input_ids) => (float[B,S,96] logits) {
        embedded = Gather <axis = 0> (table, input_ids)
        up = MatMul (embedded, fc1)
        active = Tanh (up)
        down = MatMul (active, fc2)
        mixed = Add (embedded, down)
        head = Transpose <perm = [1, 0]> (table)
        logits = MatMul (mixed, head)
    }"""
    weights = {
        "table": weight(VOCABULARY, WIDTH, seed=3, scale=0.5),
        "fc1": weight(WIDTH, 128, seed=4),
        "fc2": weight(128, WIDTH, seed=5),
    }
    return save_model(make_model(text, weights), folder)


def deep_decoder(folder: Path, *, layers: int = 3, name: str = "float.onnx") -> Path:
    """input_ids [B, S] -> embedding, layers of two norms and five linears, a head -> logits [B, S, 96].

    A gate computed from the tokens is carried to every layer. Norms and earlier linears can take a scale, and where Tanh feeds a linear
    only a Mul of its own.
    """
    lines = [
        "x0 = Gather <axis = 0> (table, input_ids)", "ids = Cast <to = 1> (input_ids)", "wave = Sin (ids)",
        "gate = Unsqueeze (wave, axes)",
    ]  # fmt: skip
    weights = {
        "table": weight(VOCABULARY, WIDTH, seed=3, scale=0.5),
        "head": weight(WIDTH, VOCABULARY, seed=9),
    }
    loud = np.random.default_rng(0).permutation(np.geomspace(0.1, 30, WIDTH)).astype(np.float32)
    axes = "axes = Constant <value_ints = [-1]> ()"

    def norm(source: str, result: str, gain: str) -> list[str]:
        weights[gain] = np.roll(loud, len(weights))
        return [
            f"{result}_square = Mul ({source}, {source})",
            f"{result}_mean = ReduceMean <keepdims = 1> ({result}_square, axes)",
            f"{result}_root = Sqrt ({result}_mean)",
            f"{result}_unit = Div ({source}, {result}_root)",
            f"{result} = Mul ({result}_unit, {gain})",
        ]

    for i in range(layers):
        lines += norm(f"x{i}", f"n{i}", f"gain{i}")
        lines += [
            f"v{i} = MatMul (n{i}, wv{i})", f"o{i} = MatMul (v{i}, wo{i})", f"g{i} = Mul (o{i}, gate)",
            f"a{i} = Add (x{i}, g{i})",
        ]  # fmt: skip
        lines += norm(f"a{i}", f"m{i}", f"gain_m{i}")
        lines += [
            f"u{i} = MatMul (m{i}, wu{i})", f"t{i} = Tanh (u{i})", f"l{i} = Mul (t{i}, loud)",
            f"s{i} = Softplus (l{i})", f"d{i} = MatMul (s{i}, wd{i})",
            f"x{i + 1} = Add (a{i}, d{i})",
        ]  # fmt: skip
        for place, key in enumerate(("wv", "wo", "wu", "wd")):
            weights[f"{key}{i}"] = weight(WIDTH, WIDTH, seed=20 + 4 * i + place, scale=0.05)
    weights["loud"] = np.where(np.arange(WIDTH) % 7 == 0, 60, 1).astype(np.float32)
    lines.append(f"logits = MatMul (x{layers}, head)")
    text = "deep (int64[B,S] input_ids) => (float[B,S,96] logits) {\n" + "\n".join([axes, *lines]) + "\n}"
    return save_model(make_model(text, weights), folder, name)


def old_gemm(folder: Path) -> Path:
    """Opset 11, IR 6: Gemm with transB and bias, its weights inputs too, as old exporters wrote them."""
    text = """old (float[M,64] x, float[32,64] w, float[32] b) => (float[M,32] y) {
        y = Gemm <transB = 1> (x, w, b)
    }"""
    weights = {"w": weight(32, WIDTH, seed=6), "b": weight(32, seed=7, scale=1.0)}
    return save_model(make_model(text, weights, opset=11, ir_version=6), folder)


def nothing_to_quantize(folder: Path) -> Path:
    """No product at all."""
    return save_model(make_model("g (float[M,64] x) => (float[M,64] y) { y = Relu (x) }"), folder)


def feeds_file(folder: Path, **arrays: object) -> Path:
    """An .npz of one feed."""
    path = folder / "feed.npz"
    np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})
    return path


def tokenizer(folder: Path) -> Path:
    """Words a0 .. a95 are their numbers."""
    vocabulary = {f"a{index}": index for index in range(VOCABULARY)}
    made = Tokenizer(token_models.WordLevel(vocabulary, unk_token="a0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = folder / "tokenizer.json"
    made.save(str(path))
    return path
