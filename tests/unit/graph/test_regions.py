"""find_regions: cut at linears and tables, a graph falls apart where a change of basis can be seen."""

import onnx_ir as ir

from qcompiler.graph.census import take_census
from qcompiler.graph.regions import Region, Regions, find_regions
from tests.small_decoders import LAYERS, decoder
from tests.small_models import make_model, weight


def _regions(model: object) -> Regions:
    loaded = ir.from_proto(model)  # type: ignore[arg-type]  # a ModelProto
    assert isinstance(loaded, ir.Model)
    return find_regions(loaded, take_census(loaded))


def _names(region: Region) -> tuple[list[str], list[str]]:
    writers = sorted(product.weight.name for product in region.writers.values())
    return writers, sorted(product.weight.name for product in region.readers)


def test_a_decoder_is_a_stream_and_the_insides_of_its_blocks() -> None:
    found = [_names(region) for region in _regions(decoder("rms_pow")).regions]
    stream = ["L0wd", "L0wo", "L1wd", "L1wo", "table"]
    readers = [f"L{layer}{kind}" for layer in range(LAYERS) for kind in ("wk", "wq", "wu", "wv")]
    attention = [(["L0wk", "L0wq", "L0wv"], ["L0wo"]), (["L1wk", "L1wq", "L1wv"], ["L1wo"])]
    mlps = [(["L0wu"], ["L0wd"]), (["L1wu"], ["L1wd"])]
    assert sorted(found) == sorted([(stream, sorted([*readers, "head"])), *attention, *mlps, (["head"], [])])


def test_masks_and_shapes_join_nothing() -> None:
    """A mask that both regions read, and the shape of one that the other reads, carry no numbers of theirs."""
    model = make_model(
        "g (float[M,32] x, float[M,32] mask) => (float[M,32] y) { a = MatMul(x, w0) b = Mul(a, mask) c = MatMul(b, w1) s = Shape(b)"
        " d = Mul(c, mask) e = Reshape(d, s) y = MatMul(e, w2) }",
        {"w0": weight(32, 32), "w1": weight(32, 32, seed=1), "w2": weight(32, 32, seed=2)},
    )
    assert [_names(region) for region in _regions(model).regions] == [
        (["w0"], ["w1"]),
        (["w1"], ["w2"]),
        (["w2"], []),
    ]
