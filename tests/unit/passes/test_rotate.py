"""Rotate: the same function in another basis, whatever the norms are written as; and what is left alone, with its reason."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.errors import CalibrationError
from qcompiler.graph import region_run
from qcompiler.graph.census import take_census
from qcompiler.graph.extract import Piece
from qcompiler.graph.weight_store import WeightStore
from qcompiler.pass_manager import check_model
from qcompiler.passes.normalize import Normalize
from qcompiler.passes.rotate import ROTATED_KEY, Rotate
from qcompiler.passes.widen_bfloat16 import WidenBfloat16
from qcompiler.recipe import Recipe
from qcompiler.recipe.plan import Plan, make_plan
from qcompiler.recipe.transform import TransformSettings
from tests.small_decoders import NORMS, TOKENS, decoder
from tests.small_models import Array, assert_equal_outputs, make_model, op_types, run, weight

# A dozen products with an orthogonal matrix in float32; a channel that is turned the wrong way changes the output by its size.
ROUNDING = 1e-4
FEED = {"input_ids": TOKENS}


def _rotate(
    model: onnx.ModelProto, folder: Path, settings: TransformSettings | None = None, seed: int = 0
) -> tuple[ir.Model, Rotate, Plan]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    loaded = ir.from_proto(copy)
    Normalize()(loaded)
    return loaded, *_rotate_loaded(loaded, folder, settings, seed)


def _rotate_loaded(
    loaded: ir.Model, folder: Path, settings: TransformSettings | None = None, seed: int = 0
) -> tuple[Rotate, Plan]:
    plan = make_plan(take_census(loaded), Recipe.load("w4a16-rtn"))
    store = WeightStore(folder)
    rotate = Rotate(plan, settings or TransformSettings(), seed, store, lambda what, done, total: None)
    assert rotate(loaded).modified is bool(rotate.result.streams or rotate.result.heads)
    check_model(loaded, "rotate")
    return rotate, plan


def _table(model: ir.Model) -> Array:
    tensor = model.graph.initializers["table"].const_value
    assert tensor is not None
    return tensor.numpy()


def _peak(values: Array) -> float:
    """The largest over the root of the mean square."""
    return float(np.abs(values).max() / np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", sorted(NORMS))
def test_the_function_stays_and_the_outliers_go(norm: str, tied: bool, biases: bool, tmp_path: Path) -> None:
    model = decoder(norm, tied=tied, biases=biases, positions=biases)
    after, rotate, _ = _rotate(model, tmp_path)
    assert rotate.result.left_alone == []
    assert len(rotate.result.streams) == 1
    assert rotate.result.heads == 2
    assert len(rotate.result.products) == (1 if tied else 0)
    assert_equal_outputs(run(model, FEED), run(after, FEED), ROUNDING)
    before = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    assert _peak(_table(after)) < 0.5 * _peak(onnx.numpy_helper.to_array(before))


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_means_are_kept_where_a_norm_subtracts_them(norm: str, tmp_path: Path) -> None:
    _, rotate, _ = _rotate(decoder(norm), tmp_path)
    assert ("means kept" in rotate.result.streams[0]) is (norm == "layer")


def test_norms_become_plain(tmp_path: Path) -> None:
    """Their weights are in the linears now, each folded once, and no node is added."""
    model = decoder("rms")
    after, rotate, plan = _rotate(model, tmp_path)
    assert "5 norms' weights folded" in rotate.result.streams[0]
    assert sorted(op_types(after)) == sorted(op_types(model))
    ones = [value for name, value in after.graph.initializers.items() if name.startswith("rotate.ones")]
    assert len(ones) == 1
    assert len(ones[0].uses()) == 5
    assert not {"g", "L0ga", "L1gf"} & set(after.graph.initializers)
    notes = {planned.weight.name: planned.notes for planned in plan.quantized}
    assert any("reads a stream turned" in note for note in notes["L0wq"])
    assert any("heads of 8" in note for note in notes["L0wv"])


def test_sums_of_several(tmp_path: Path) -> None:
    """As some exports write the residual: what comes in, a layer's output and its bias in one Sum."""
    model = decoder(biases=True)
    nodes = {node.output[0]: node for node in model.graph.node}
    for layer, stream in enumerate(("h0", "L0out")):
        total, biased = nodes[f"L{layer}h"], nodes[f"L{layer}o"]
        model.graph.node.remove(biased)
        total.op_type = "Sum"
        total.input[:] = [stream, f"L{layer}o_raw", f"L{layer}bo"]
    onnx.checker.check_model(model)
    after, rotate, _ = _rotate(model, tmp_path)
    assert rotate.result.left_alone == []
    assert (len(rotate.result.streams), rotate.result.heads) == (1, 2)
    assert_equal_outputs(run(model, FEED), run(after, FEED), ROUNDING)


def test_half_precision(tmp_path: Path) -> None:
    """float16 stays float16; rounding the turned weights is what differs: 2^-11 of each number, over two layers."""
    model = decoder("rms_op", dtype=np.float16)
    after, rotate, _ = _rotate(model, tmp_path)
    assert len(rotate.result.streams) == 1
    assert _table(after).dtype == np.float16
    assert_equal_outputs(run(model, FEED), run(after, FEED), 1e-2)


def test_norms_that_share_a_stack(tmp_path: Path) -> None:
    """Their weights are parts of one tensor, as a loop over layers is exported; each part is the layer's own."""
    model = decoder("rms")
    parts = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names = ("L0ga", "L0gf", "L1ga", "L1gf")
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    stack = np.stack([parts[name][None] for name in names])
    model.graph.initializer.extend([*kept, onnx.numpy_helper.from_array(stack, "norms")])
    for index, name in reversed(list(enumerate(names))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(index), f"{name}.index"))
        node = onnx.helper.make_node("Gather", ["norms", f"{name}.index"], [name], name=f"{name}.part")
        model.graph.node.insert(0, node)
    after, rotate, _ = _rotate(model, tmp_path)
    assert rotate.result.left_alone == []
    assert "5 norms' weights folded" in rotate.result.streams[0]
    assert_equal_outputs(run(model, FEED), run(after, FEED), ROUNDING)


@pytest.mark.parametrize("norm", ["rms_pow", "layer"])
def test_bfloat16_stays_in_the_file(norm: str, tmp_path: Path) -> None:
    """Computed in float32 behind Casts; rounding the turned weights to 8 bits is what differs."""
    model = decoder(norm, tied=True, biases=True)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            narrow = onnx.numpy_helper.to_array(tensor).astype(ir.DataType.BFLOAT16.numpy())
            tensor.CopyFrom(
                onnx.TensorProto(name=tensor.name, dims=narrow.shape, data_type=16, raw_data=narrow.tobytes())
            )
    model.graph.node[-1].output[0] = "narrow"
    model.graph.node.append(onnx.helper.make_node("Cast", ["narrow"], ["logits"], to=onnx.TensorProto.FLOAT))
    widened = ir.from_proto(model)
    Normalize()(widened)
    assert WidenBfloat16()(widened).modified
    before = run(widened, FEED)
    rotate, _ = _rotate_loaded(widened, tmp_path)
    assert len(rotate.result.streams) == 1
    assert _table(widened).dtype == ir.DataType.BFLOAT16.numpy()
    assert_equal_outputs(before, run(widened, FEED), 1e-2)  # 2^-8 of each number, over two layers


def test_twice(tmp_path: Path) -> None:
    after, _, _ = _rotate(decoder(), tmp_path / "first")
    table = _table(after).copy()
    again, _ = _rotate_loaded(after, tmp_path / "second")
    assert again.result.left_alone == [
        "residual streams: rotated by an earlier compile",
        "heads of attention: rotated by an earlier compile",
    ]
    assert np.array_equal(_table(after), table)


def test_one_after_the_other(tmp_path: Path) -> None:
    model = decoder()
    after, rotate, _ = _rotate(model, tmp_path / "first", TransformSettings(heads=False))
    assert (len(rotate.result.streams), rotate.result.heads) == (1, 0)
    assert after.metadata_props[ROTATED_KEY] == "stream"
    again, _ = _rotate_loaded(after, tmp_path / "second")
    assert (len(again.result.streams), again.result.heads) == (0, 2)
    assert again.result.left_alone == ["residual streams: rotated by an earlier compile"]
    assert_equal_outputs(run(model, FEED), run(after, FEED), ROUNDING)


def test_a_seed_decides(tmp_path: Path) -> None:
    first, same, other = (
        _table(_rotate(decoder(), tmp_path / str(index), seed=seed)[0])
        for index, seed in enumerate((1, 1, 2))
    )
    assert np.array_equal(first, same)
    assert not np.allclose(first, other)


def _left_alone(model: onnx.ModelProto, feed: dict[str, Array], folder: Path) -> list[str]:
    """Why nothing of the stream was turned; the function stays in any case."""
    after, rotate, plan = _rotate(model, folder)
    assert rotate.result.streams == []
    assert_equal_outputs(run(model, feed), run(after, feed), ROUNDING)
    assert plan.warnings == [f"not rotated: {line}" for line in rotate.result.left_alone]
    return rotate.result.left_alone


@pytest.mark.parametrize("wanted", ["L0h", "final"])
def test_an_output_is_turned_back(wanted: str, tmp_path: Path) -> None:
    """A value of the stream itself, and what the last norm makes of it, whose weight then cannot go into the head."""
    model = decoder(outputs=f"float[B,S,32] {wanted}")
    after, rotate, plan = _rotate(model, tmp_path)
    products = ["L0h.turned_back"] if wanted == "L0h" else ["g.rotated", "final.turned_back"]
    assert rotate.result.products == products
    reasons = [skipped.reason for skipped in plan.skipped if skipped.name in products]
    assert reasons[-1] == f"made by rotate: the output {wanted} in its own basis"
    assert_equal_outputs(run(model, FEED), run(after, FEED), ROUNDING)


def test_values_that_are_an_output_are_left_alone(tmp_path: Path) -> None:
    """As in a decoder whose cache leaves it."""
    _, rotate, _ = _rotate(decoder(outputs="float[B,G,R,N,8] L0v5, float[B,G,R,N,8] L1v5"), tmp_path)
    assert (len(rotate.result.streams), rotate.result.heads) == (1, 0)
    assert rotate.result.left_alone == ["heads before L0wo: L0v5 is an output of the model (2 such)"]


def test_regions_that_cannot_be_run_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names a value of the layer at hand; the reason is the same for all of them."""

    class Broken(Piece):
        def run(self, feeds: Mapping[ir.Value, Array]) -> dict[ir.Value, Array]:
            raise CalibrationError(f"{self.outputs[0].name}: no room")

    monkeypatch.setattr(region_run, "Piece", Broken)
    reasons = _left_alone(decoder(), FEED, tmp_path)
    assert [reason.partition(": ")[2] for reason in reasons] == [
        "it cannot be run: L0a: no room",
        "it cannot be run: L0x: no room (2 such)",
    ]


def test_heads_of_a_stacked_weight_are_left_alone(tmp_path: Path) -> None:
    """The value projections of two layers in one tensor, each read by its layer alone."""
    model = decoder()
    parts = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    stack = np.stack([parts["L0wv"], parts["L1wv"]])
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in ("L0wv", "L1wv")]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, onnx.numpy_helper.from_array(stack, "wv")])
    model.graph.node.insert(0, onnx.helper.make_node("Split", ["wv"], ["s0", "s1"], axis=0, num_outputs=2))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    for index in (0, 1):
        squeeze = onnx.helper.make_node("Squeeze", [f"s{index}", "first"], [f"L{index}wv"])
        model.graph.node.insert(1, squeeze)
    after, rotate, _ = _rotate(model, tmp_path, TransformSettings(stream=False))
    assert rotate.result.heads == 0
    assert "is one of 2 experts that are stored as one; stacks are not rotated" in rotate.result.left_alone[0]
    assert_equal_outputs(run(model, FEED), run(after, FEED), ROUNDING)


def test_a_norm_that_adds_too(tmp_path: Path) -> None:
    """ONNX Runtime's fused form: the sum is the norm's fourth output, and the next norm's input."""
    model = make_model(
        "g (int64[B,S] input_ids) => (float[B,S,320] logits) { h = Gather(table, input_ids) a = MatMul(h, w0) r = Relu(a) b = MatMul(r, w1)"
        " n, m1, i1, s = com.microsoft.SkipSimplifiedLayerNormalization <epsilon=0.00001> (h, b, g1, bias)"
        " c = MatMul(n, w2) q = Relu(c) d = MatMul(q, w3)"
        " o, m2, i2 = com.microsoft.SkipSimplifiedLayerNormalization <epsilon=0.00001> (s, d, g2) logits = MatMul(o, head) }",
        {"table": weight(320, 32), "w0": weight(32, 48), "w1": weight(48, 32), "w2": weight(32, 48), "w3": weight(48, 32),
         "head": weight(32, 320), "g1": weight(32, scale=1), "g2": weight(32, seed=2, scale=1), "bias": weight(32, seed=3, scale=1)},
        domains={"com.microsoft": 1},
    )  # fmt: skip
    after, rotate, _ = _rotate(model, tmp_path)
    assert rotate.result.left_alone == ["no attention between two linears"]
    assert "2 norms' weights folded" in rotate.result.streams[0]
    assert_equal_outputs(run(model, FEED), run(after, FEED), ROUNDING)


def test_a_norm_behind_the_sum_is_left_alone(tmp_path: Path) -> None:
    """Post-norm: what the norm's weight multiplies is added to again, and products in its place would cost too much."""
    model = make_model(
        "g (float[M,32] x) => (float[M,40] y) { h = MatMul(x, w0) a = MatMul(h, w1) ar = Relu(a) b = MatMul(ar, w2) s = Add(h, b)"
        " n = LayerNormalization(s, g1) c = MatMul(n, w3) cr = Relu(c) d = MatMul(cr, w4) t = Add(n, d) m = LayerNormalization(t, g2)"
        " y = MatMul(m, w5) }",
        {"w0": weight(32, 32), "w1": weight(32, 48), "w2": weight(48, 32), "w3": weight(32, 48), "w4": weight(48, 32),
         "w5": weight(32, 40), "g1": weight(32, scale=1), "g2": weight(32, scale=1)},
    )  # fmt: skip
    feed = {"x": weight(9, 32, seed=4, scale=1)}
    reasons = _left_alone(model, feed, tmp_path)
    assert "1 of its 2 norms cannot give their weight" in reasons[0]


def test_what_does_not_turn_is_left_alone(tmp_path: Path) -> None:
    """A Tanh in the stream."""
    model = make_model(
        "g (float[M,32] x) => (float[M,40] y) { h = MatMul(x, w0) a = MatMul(h, w1) r = Relu(a) b = MatMul(r, w2) s = Add(h, b)"
        " t = Tanh(s) y = MatMul(t, w3) }",
        {"w0": weight(32, 32), "w1": weight(32, 48), "w2": weight(48, 32), "w3": weight(32, 40)},
    )
    reasons = _left_alone(model, {"x": weight(9, 32, seed=4, scale=1)}, tmp_path)
    assert reasons[0] == "stream of 32 channels from w0: what w3 reads does not turn with it"


def test_a_stream_that_begins_as_an_input_is_left_alone(tmp_path: Path) -> None:
    """As in a decoder that takes embeddings; also what a convolution writes."""
    model = make_model(
        "g (float[M,32] x) => (float[M,40] y) { a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) s = Add(x, b) c = MatMul(s, w3)"
        " q = Relu(c) d = MatMul(q, w4) t = Add(s, d) y = MatMul(t, w5) }",
        {
            "w1": weight(32, 48),
            "w2": weight(48, 32),
            "w3": weight(32, 48, seed=1),
            "w4": weight(48, 32, seed=1),
            "w5": weight(32, 40),
        },
    )
    reasons = _left_alone(model, {"x": weight(9, 32, seed=4, scale=1)}, tmp_path)
    assert (
        reasons[0]
        == "stream of 32 channels from w2: x is added to it, and neither a linear nor a table writes that"
    )


BOUNDS = {
    "Clip": "t = Clip(s, low, high)",
    "HardSigmoid": "t = HardSigmoid<alpha=0.0001, beta=0.0>(s)",
    "Mod": "t = Mod<fmod=1>(s, high)",
    "Equal": "e = Equal(s, high) c = Cast<to=1>(e) t = Add(s, c)",
}
"""A straight line, or nothing, for all numbers that are not large."""


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_bound_is_left_alone(kind: str, tmp_path: Path) -> None:
    """No run on small numbers would meet it."""
    model = make_model(
        "g (float[M,32] x) => (float[M,40] y) { h = MatMul(x, w0) a = MatMul(h, w1) r = Relu(a) b = MatMul(r, w2) s = Add(h, b)"
        f" {BOUNDS[kind]} y = MatMul(t, w3) }}",
        {"w0": weight(32, 32), "w1": weight(32, 48), "w2": weight(48, 32), "w3": weight(32, 40),
         "low": np.array(-65504, np.float32), "high": np.array(65504, np.float32)},
    )  # fmt: skip
    reasons = _left_alone(model, {"x": weight(9, 32, seed=4, scale=1)}, tmp_path)
    assert f"({kind}) bounds or compares its numbers" in reasons[0]


def test_a_weight_used_elsewhere_is_left_alone(tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,40] y) { p = MatMul(x, w0) q = Tanh(p) h = MatMul(q, w0) a = MatMul(h, w1) r = Relu(a) b = MatMul(r, w2)"
        " s = Add(h, b) y = MatMul(s, w3) }",
        {"w0": weight(32, 32), "w1": weight(32, 48), "w2": weight(48, 32), "w3": weight(32, 40)},
    )
    reasons = _left_alone(model, {"x": weight(9, 32, seed=4, scale=1)}, tmp_path)
    assert reasons[0] == "stream of 32 channels from w0: w0 is also used outside of it"


def test_nothing_to_rotate(tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,48] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }",
        {"w": weight(32, 48), "v": weight(48, 48)},
    )
    assert _left_alone(model, {"x": weight(9, 32, seed=4, scale=1)}, tmp_path) == [
        "no residual stream: nothing sums what linears write for linears of that width to read",
        "no attention between two linears",
    ]


def test_stacked_experts_are_left_alone(tmp_path: Path) -> None:
    """Their numbers are stored as one, and are not rewritten."""
    model = make_model(
        "g (int64[B,S] input_ids) => (float[B,S,64] y) { h = Gather(table, input_ids) x = Unsqueeze(h, one) a = MatMul(x, up) r = Relu(a)"
        " d = MatMul(r, down) m = ReduceSum<keepdims=0>(d, one) s = Add(h, m) y = MatMul(s, head) }",
        {"table": weight(64, 32), "up": weight(4, 32, 48), "down": weight(4, 48, 32), "head": weight(32, 64), "one": np.array([1])},
    )  # fmt: skip
    reasons = _left_alone(model, FEED, tmp_path)
    assert "is one of 4 experts that are stored as one; stacks are not rotated" in reasons[0]
