"""Feeds of the sizes that are asked for, and what is refused."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.bench.workloads import Sizes, Workload, check_dims, make_workloads
from qcompiler.errors import InputError
from tests.small_models import Array, make_model

TOKENS = "int64[B,S] input_ids"
CACHES = "float[B,2,P,8] past_key_values_key, float[B,2,P,8] past_key_values_value"


def _model(inputs: str) -> ir.Model:
    """Of these inputs; the first is what it gives back."""
    first = inputs.split(",")[0].split("[")[0].strip(), inputs.split("[")[1].split("]")[0]
    name = inputs.split("]")[1].split(",")[0].strip()
    graph = f"g ({inputs}) => ({first[0]}[{first[1]}] same) {{ same = Identity({name}) }}"
    return ir.serde.deserialize_model(make_model(graph))


def _make(inputs: str, sizes: Sizes | None = None) -> list[Workload]:
    return make_workloads("m.onnx", _model(inputs), sizes or Sizes())


def _refused(inputs: str, sizes: Sizes | None = None) -> str:
    with pytest.raises(InputError, match=r"^m\.onnx: ") as refusal:
        _make(inputs, sizes)
    return str(refusal.value)


def _shapes(workload: Workload) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in workload.feed.items()}


def test_tokens_alone_are_a_prefill() -> None:
    (prefill,) = _make(f"{TOKENS}, int64[B,S] attention_mask", Sizes(tokens=7, dims={"B": 3}))
    assert (prefill.name, prefill.tokens, prefill.past) == ("prefill", 21, None)
    assert _shapes(prefill) == {"input_ids": (3, 7), "attention_mask": (3, 7)}
    assert prefill.feed["attention_mask"].all()


def test_a_past_adds_a_decode() -> None:
    inputs = (
        f"{TOKENS}, int64[B,T] attention_mask, int64[B,S] position_ids, {CACHES}, bool[1] use_cache_branch"
    )
    prefill, decode = _make(inputs, Sizes(tokens=5, past=4))
    assert (prefill.name, prefill.tokens, prefill.past) == ("prefill", 5, 0)
    assert prefill.feed["past_key_values_key"].shape == (1, 2, 0, 8)
    assert not prefill.feed["use_cache_branch"].any()
    assert (decode.name, decode.tokens, decode.past) == ("decode", 1, 4)
    assert _shapes(decode)["past_key_values_value"] == (1, 2, 4, 8)
    assert decode.feed["attention_mask"].tolist() == [[1] * 5]
    assert decode.feed["position_ids"].tolist() == [[4]]
    assert decode.feed["use_cache_branch"].all()
    assert decode.feed["past_key_values_key"].any()


def test_defaults_are_512_tokens_and_128_before_one() -> None:
    prefill, decode = _make(f"{TOKENS}, {CACHES}")
    assert prefill.tokens == 512 and decode.past == 128


def test_fixed_numbers_of_tokens_decide() -> None:
    (decode,) = _make(f"int64[1,1] input_ids, {CACHES}")
    assert decode.name == "decode"
    (prefill,) = _make(f"int64[1,16] input_ids, {CACHES}")
    assert (prefill.name, prefill.tokens) == ("prefill", 16)
    assert "takes 16 tokens at a time; leave --tokens out, or give --tokens 16" in _refused(
        "int64[1,16] input_ids", Sizes(tokens=8)
    )


def test_a_cache_of_fixed_length_decides() -> None:
    fixed = f"{TOKENS}, float[1,2,32,8] key_cache_0"
    assert [workload.past for workload in _make(fixed)] == [0, 32]
    assert "leave --past out, or give --past 32" in _refused(fixed, Sizes(past=8))


def test_other_models_get_one_sample() -> None:
    (batch,) = _make("float[N,3,H,W] image, float16[N,W] mask_of_columns", Sizes(dims={"W": 16}))
    assert (batch.name, batch.tokens, batch.past) == ("batch", None, None)
    assert _shapes(batch) == {"image": (1, 3, 64, 16), "mask_of_columns": (1, 16)}
    assert batch.feed["mask_of_columns"].dtype == np.float16


def test_the_seed_decides_the_numbers() -> None:
    feeds = [_make("float[N,8] x", Sizes(seed=seed))[0].feed["x"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(feeds[0], feeds[1])
    assert (feeds[0] != feeds[2]).any()


def test_what_cannot_be_made_up_is_named_with_the_option() -> None:
    assert "no values can be made up for words (object [N])" in _refused("string[N] words")
    assert _refused("string[N] words").endswith("give its inputs by --data FILE.npz")
    vague = _refused(f"{TOKENS}, float[B,H,P,8] past_key_values_key")
    assert "past_key_values_key: cannot tell which dimension" in vague and "--data FILE.npz" in vague


def test_data_is_the_users_own(tmp_path: Path) -> None:
    key: Array = np.ones((1, 2, 6, 8), np.float32)
    arrays = {"input_ids": np.zeros((1, 3), np.int64), "past_key_values_key": key}
    np.savez(tmp_path / "feed.npz", **arrays)
    inputs = f"{TOKENS}, float[B,2,P,8] past_key_values_key"
    (found,) = _make(inputs, Sizes(data=str(tmp_path / "feed.npz")))
    assert (found.name, found.tokens, found.past) == ("data", 3, 6)
    np.testing.assert_array_equal(found.feed["past_key_values_key"], key)


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "feed.npz", y=np.zeros(3))
    assert "no input 'y'" in _refused("float[N,8] x", Sizes(data=str(tmp_path / "feed.npz")))
    (tmp_path / "feed.jsonl").write_text(json.dumps({"x": [[1.0]]}))
    assert "must be 8" in _refused("float[N,8] x", Sizes(data=str(tmp_path / "feed.jsonl")))
    assert "no such file" in _refused("float[N,8] x", Sizes(data="missing.npz"))
    (tmp_path / "text.txt").write_text("words")
    assert "give its length by --tokens" in _refused(TOKENS, Sizes(data=str(tmp_path / "text.txt")))


def test_an_index_past_its_table_is_refused(tmp_path: Path) -> None:
    graph = "g (int64[B,S] input_ids) => (float[B,S,4] y) { y = Gather(table, input_ids) }"
    model = ir.serde.deserialize_model(make_model(graph, {"table": np.zeros((10, 4), np.float32)}))
    np.savez(tmp_path / "feed.npz", input_ids=np.array([[10]]))
    with pytest.raises(InputError, match="token 10, but the model's vocabulary is 10"):
        make_workloads("m.onnx", model, Sizes(data=str(tmp_path / "feed.npz")))
    (prefill,) = make_workloads("m.onnx", model, Sizes(tokens=1000))
    assert prefill.feed["input_ids"].max() < 10


@pytest.mark.parametrize(
    ("inputs", "name", "words"),
    [
        ("float[batch,8] x", "bach", "did you mean 'batch'?"),
        ("float[2,8] x", "batch", "all are fixed"),
        (f"{TOKENS}, {CACHES}", "S", "use one of: B"),
        (f"{TOKENS}, {CACHES}", "P", "use one of: B"),
    ],
)
def test_sizes_that_nothing_takes_are_refused(inputs: str, name: str, words: str) -> None:
    with pytest.raises(InputError, match=f"--dim {name}: .*") as refusal:
        check_dims({name: 2}, [_model(inputs)])
    assert words in str(refusal.value)


def test_a_size_of_one_of_two_models_is_taken() -> None:
    check_dims({"N": 2}, [_model("float[2,8] x"), _model("float[N,8] x")])
