"""UseOwnGathers: which rows our operator takes over, with the Slice behind them, and that nothing else changes."""

import numpy as np
import onnx
import pytest

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.passes.use_own_gathers import UseOwnGathers
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run

SIZES = "bits=4, block_size=32, gather_axis=0, quantize_axis=1"
CUT = "w = com.microsoft.GatherBlockQuantized<{sizes}>(c, i, s) y = Slice(w, zero, k, last)"


def _model(
    sizes: str = SIZES, *, inputs: str = "c, i, s", body: str = "", width: int = 64, **weights: Array
) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    constants = {
        "c": rng.integers(0, 256, (10, 32)).astype(np.uint8), "s": np.full((10, 2), 0.01, np.float32),
        "zero": np.array([0]), "last": np.array([-1]), "k": np.array([width]), **weights,
    }  # fmt: skip
    body = body or f"y = com.microsoft.GatherBlockQuantized<{sizes}>({inputs})"
    constants = {name: array for name, array in constants.items() if name in body.replace(",", " ").replace(")", " ").replace("(", " ").split()}  # fmt: skip
    return make_model(
        f"g (int64[M] i) => (float[M,{width}] y) {{ {body} }}", constants, domains={"com.microsoft": 1}
    )


FEED = {"i": np.array([0, 9, 3])}


@pytest.mark.parametrize("inputs", ["c, i, s", "c, i, s, z"])
def test_it_takes_over_the_node_on_the_same_bytes(inputs: str) -> None:
    model = _model(inputs=inputs, z=np.full((10, 1), 0x79, np.uint8))
    after, modified = apply_pass(UseOwnGathers(), model)
    assert modified
    (node,) = after.graph
    assert (node.domain, node.op_type) == (OUR_DOMAIN, "GatherNBits")
    assert {name: node.attributes.get_int(name) for name in node.attributes} == {
        "K": 64, "N": 10, "bits": 4, "block_size": 32,
    }  # fmt: skip
    assert node.inputs[1] is after.graph.initializers["c"]
    assert_equal_outputs(run(model, FEED), run(after, FEED), 0.0)  # no library of ours: the body runs
    assert not apply_pass(UseOwnGathers(), after)[1]


def test_it_cuts_the_padding_itself() -> None:
    model = _model(body=CUT.format(sizes=SIZES), width=50)
    after, modified = apply_pass(UseOwnGathers(), model)
    assert modified and op_types(after) == ["GatherNBits"]
    assert after.graph[0].attributes.get_int("K") == 50
    assert set(after.graph.initializers) == {"c", "s"}
    assert_equal_outputs(run(model, FEED), run(after, FEED), 0.0)


@pytest.mark.parametrize(
    ("body", "width"),
    [
        (CUT.format(sizes=SIZES), 20),  # more than padding
        (CUT.format(sizes=SIZES) + " t = Relu(w)", 50),  # somebody else reads the padding
        (CUT.format(sizes=SIZES).replace("zero, k, last", "k, k, last"), 50),
    ],
)
def test_a_slice_that_is_no_cut_stays(body: str, width: int) -> None:
    after, modified = apply_pass(UseOwnGathers(), _model(body=body, width=width))
    assert modified and op_types(after)[:2] == ["GatherNBits", "Slice"]
    assert after.graph[0].attributes.get_int("K") == 64


@pytest.mark.parametrize(
    ("sizes", "weights", "said"),
    [
        (SIZES.replace("gather_axis=0", "gather_axis=1"), {}, "gathers along axis 1"),
        (SIZES.replace("32", "24"), {}, "blocks of 24"),
        (SIZES + ", other=1", {}, "attribute other"),
        (SIZES, {"c": np.zeros((10, 30), np.uint8)}, "whole blocks"),
        (SIZES, {"c": np.zeros((10, 2, 16), np.uint8)}, "whole blocks"),
    ],
)
def test_near_misses_stay_and_say_why(sizes: str, weights: dict[str, Array], said: str) -> None:
    entry = UseOwnGathers()
    after, modified = apply_pass(entry, _model(sizes, **weights))
    assert not modified and op_types(after) == ["GatherBlockQuantized"]
    assert len(entry.left) == 1 and said in entry.left[0]
