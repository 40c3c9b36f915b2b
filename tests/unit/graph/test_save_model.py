"""Saving: what is written is whole, the same each time, and never in the way of what it was made from."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from qcompiler.errors import InputError, PassError, ResourceError
from qcompiler.graph import data_file, edits, model_file
from tests.model_files import (
    EXPECTED,
    W,
    X,
    external_tensor,
    inline_model,
    linear_model,
    mapped_tensor,
    run_file,
    write_external,
)


def test_saved_model_runs_and_is_aligned(tmp_path: Path):
    others = [onnx.numpy_helper.from_array(np.ones(300 + i, np.float32), f"o{i}") for i in range(5)]
    proto = linear_model([*others, onnx.numpy_helper.from_array(W, "w")])
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    done: list[tuple[int, int]] = []

    path = model_file.save(
        model_file.load(tmp_path / "m.onnx"), tmp_path / "out", lambda *args: done.append(args)
    )

    onnx.checker.check_model(path)
    assert np.allclose(run_file(path), EXPECTED, rtol=1e-6)
    saved = {tensor.name: tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    assert saved["small"].data_location == TensorProto.DEFAULT  # 128 bytes
    for name in ("w", *(f"o{i}" for i in range(5))):
        info = onnx.external_data_helper.ExternalDataInfo(saved[name])
        assert info.offset % 64 == 0 and info.location == "model.onnx.data"
    size = (tmp_path / "out" / "model.onnx.data").stat().st_size
    assert done[-1] == (size, size)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.onnx", "model.onnx.data"]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(inline_model().SerializeToString())
    for name in ("a", "b"):
        model_file.save(model_file.load(tmp_path / "m.onnx"), tmp_path / name)
    model_file.save(model_file.load(tmp_path / "a" / "model.onnx"), tmp_path / "c")
    for file in ("model.onnx", "model.onnx.data"):
        contents = {(tmp_path / name / file).read_bytes() for name in ("a", "b", "c")}
        assert len(contents) == 1


def test_the_model_is_unchanged_by_saving(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(inline_model().SerializeToString())
    model = model_file.load(tmp_path / "m.onnx")
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    model_file.save(model, tmp_path / "out")
    assert all(value.const_value is before[name] for name, value in model.graph.initializers.items())


def test_without_large_tensors_there_is_no_data_file(tmp_path: Path):
    model = ir.serde.deserialize_model(inline_model())
    model_file.save(model, tmp_path)
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros((2, 2), np.float32), name="w")
    model_file.save(model, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_shared_tensors_are_written_once(tmp_path: Path):
    w = ir.tensor(W)
    model = ir.serde.deserialize_model(linear_model([onnx.numpy_helper.from_array(W, n) for n in ("w", "v")]))
    for name in ("w", "v"):
        model.graph.initializers[name].const_value = w
    path = model_file.save(model, tmp_path / "a")
    assert (tmp_path / "a" / "model.onnx.data").stat().st_size == W.nbytes
    # and from a file in which two initializers name one place
    reloaded = model_file.load(path)
    assert {mapped_tensor(reloaded, name).offset for name in ("w", "v")} == {0}
    model_file.save(reloaded, tmp_path / "b")
    assert (tmp_path / "b" / "model.onnx.data").stat().st_size == W.nbytes
    assert np.allclose(run_file(tmp_path / "b" / "model.onnx"), EXPECTED, rtol=1e-6)


def _rich_model() -> onnx.ModelProto:
    """Weights in the main graph, both branches of an If, a Constant and a function; metadata everywhere."""
    big = [onnx.numpy_helper.from_array(W + i, f"w{i}") for i in range(4)]
    h = helper.make_tensor_value_info("h_then", TensorProto.FLOAT, None)
    branches = {}
    for name, tensor in (("then", big[0]), ("else", big[1])):
        node = helper.make_node("MatMul", ["x", tensor.name], [f"h_{name}"], name=f"mm_{name}")
        value = helper.make_tensor_value_info(f"h_{name}", TensorProto.FLOAT, ["rows", 32])
        branches[f"{name}_branch"] = helper.make_graph([node], name, [], [value], [tensor])
    assert h is not None
    constant = helper.make_node("Constant", [], ["c"], value=big[2], name="constant")
    body = [
        helper.make_node("Constant", [], ["k"], value=big[3], name="inner"),
        helper.make_node("MatMul", ["a", "k"], ["b"], name="fmm"),
    ]
    function = helper.make_function("my.functions", "F", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    function.doc_string = "a function"
    nodes = [
        helper.make_node("If", ["cond"], ["h"], name="if", **branches),
        constant,
        helper.make_node("MatMul", ["x", "c"], ["m"], name="mm"),
        helper.make_node("F", ["x"], ["f"], domain="my.functions", name="call"),
        helper.make_node("Sum", ["h", "m", "f", "big"], ["y"], name="sum"),
    ]
    nodes[2].doc_string = "a node"
    nodes[2].metadata_props.add(key="k", value="v")
    graph = helper.make_graph(
        nodes,
        "rich",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64]),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 32])],
        [onnx.numpy_helper.from_array(np.full((1, 32), 2, np.float32), "big")],
        doc_string="a graph",
        value_info=[helper.make_tensor_value_info("m", TensorProto.FLOAT, ["rows", 32])],
    )
    graph.metadata_props.add(key="graph", value="g")
    graph.initializer[0].doc_string = "a tensor"
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("my.functions", 1)],
        functions=[function],
        ir_version=10,
        producer_name="exporter",
        producer_version="1.2",
        doc_string="a model",
        model_version=7,
        domain="org",
    )
    helper.set_model_props(proto, {"author": "me"})
    return proto


@pytest.mark.parametrize("route", ["inline", "external"])
def test_weights_and_metadata_everywhere_survive(tmp_path: Path, route: str):
    proto = _rich_model()
    source = tmp_path / "m.onnx"
    if route == "external":
        onnx.save(
            proto,
            source,
            save_as_external_data=True,
            size_threshold=100,
            location="d",
            convert_attribute=True,
        )
        proto = onnx.load(source)
    else:
        source.write_bytes(proto.SerializeToString())

    path = model_file.save(model_file.load(source), tmp_path / "out")

    raw = onnx.load(path, load_external_data=False)
    assert raw.functions[0].node[0].attribute[0].t.data_location == TensorProto.EXTERNAL
    assert len(path.read_bytes()) < 4096  # no weight inside
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size == 4 * W.nbytes
    for condition in (True, False):
        feeds = {"x": X, "cond": np.array(condition)}
        outputs = [ort.InferenceSession(p).run(None, feeds)[0] for p in (source, path)]
        assert np.array_equal(*outputs)
    again = onnx.load(path)
    assert [node.name for node in again.graph.node] == [node.name for node in proto.graph.node]
    assert again.graph.node[2].doc_string == "a node" and again.graph.node[2].metadata_props[0].value == "v"
    for field in ("producer_name", "producer_version", "doc_string", "model_version", "domain", "ir_version"):
        assert getattr(again, field) == getattr(proto, field)
    assert again.graph.doc_string == "a graph" and again.graph.metadata_props[0].value == "g"
    assert again.graph.initializer[0].doc_string == "a tensor"
    assert list(again.metadata_props) == list(proto.metadata_props)
    assert again.functions[0].doc_string == "a function"
    assert "m" in {info.name for info in again.graph.value_info}
    assert list(again.graph.input) == list(proto.graph.input)
    assert list(again.graph.output) == list(proto.graph.output)
    assert list(again.opset_import) == list(proto.opset_import)


def test_saving_onto_its_own_weights_is_refused(tmp_path: Path):
    path = model_file.save(ir.serde.deserialize_model(inline_model()), tmp_path)
    before = (tmp_path / "model.onnx.data").read_bytes()
    with pytest.raises(InputError, match="another folder"):
        model_file.save(model_file.load(path), tmp_path)
    (tmp_path / "same").symlink_to(tmp_path)
    with pytest.raises(InputError, match="another folder"):
        model_file.save(model_file.load(path), tmp_path / "same")
    assert (tmp_path / "model.onnx.data").read_bytes() == before


def test_saving_onto_its_own_inline_model_is_refused(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(inline_model().SerializeToString())
    with pytest.raises(InputError, match="another folder"):
        model_file.save(model_file.load(path), tmp_path)


@pytest.mark.parametrize(
    ("number", "match"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EROFS, "not writable"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_a_failing_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, match: str
):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(data_file.DataFile, "write", fail)
    with pytest.raises(ResourceError, match=match) as caught:
        model_file.save(ir.serde.deserialize_model(inline_model()), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_is_really_full(tmp_path: Path):
    """/dev/full takes no byte; NumPy's own tofile would report it without a reason."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    from qcompiler.graph.disk import writing
    from qcompiler.graph.external_data import tensor_slots

    plan = data_file.DataFile(list(tensor_slots(ir.serde.deserialize_model(inline_model()))))
    with pytest.raises(ResourceError, match="disk is full"), writing(full), full.open("wb") as file:
        plan.write(file, None)


def test_too_little_space_is_known_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ResourceError, match="0 MB needed, 0 MB free"):
        model_file.save(ir.serde.deserialize_model(inline_model()), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(tmp_path: Path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(ResourceError, match="not writable"):
        model_file.save(ir.serde.deserialize_model(inline_model()), tmp_path / "out")


def test_more_than_two_gigabytes_inline_is_refused(tmp_path: Path):
    """The attribute of an operator other than Constant cannot move; nothing of it is made."""

    def never() -> ir.TensorProtocol:
        raise AssertionError

    shape = ir.Shape([600_000_000])
    model = ir.serde.deserialize_model(inline_model())
    table = ir.AttrTensor("table", ir.LazyTensor(never, ir.DataType.FLOAT, shape, name="t"))
    model.graph[0].attributes.add(table)
    with pytest.raises(InputError, match=r"node matmul, attribute table: 2.4 GB must stay inside"):
        model_file.save(model, tmp_path)


def test_an_initializer_that_lost_its_tensor_is_our_defect(tmp_path: Path):
    model = ir.serde.deserialize_model(inline_model())
    model.graph.initializers["w"].const_value = None
    with pytest.raises(PassError, match="initializer w of graph main"):
        model_file.save(model, tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ir.tensor(np.asfortranarray(W)),
        lambda: ir.tensor(W.astype(np.float16)),
        lambda: ir.tensor(W.astype(">f4").astype(np.float32)),
        lambda: ir.LazyTensor(lambda: ir.tensor(W), ir.DataType.FLOAT, ir.Shape(W.shape)),
        lambda: ir.tensor((np.arange(64 * 64) % 16).astype(np.uint8).reshape(64, 64), ir.DataType.UINT4),
        lambda: ir.StringTensor([b"a" * 500, b"b" * 900], shape=ir.Shape([2])),
    ],
    ids=["fortran", "float16", "swapped", "lazy", "uint4", "strings"],
)
def test_every_kind_of_tensor_is_saved(tmp_path: Path, make: Callable[[], ir.TensorProtocol]):
    model = ir.serde.deserialize_model(inline_model())
    tensor = make()
    value = ir.Value(name="extra", const_value=tensor)
    value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    model.graph.register_initializer(value)
    path = model_file.save(model, tmp_path)
    saved = model_file.load(path).graph.initializers["extra"].const_value
    assert saved is not None and saved.dtype == tensor.dtype
    assert np.array_equal(saved.numpy(), tensor.numpy())


def test_a_small_external_tensor_comes_inline(tmp_path: Path):
    small = np.arange(4, dtype=np.float32)
    (tmp_path / "w.bin").write_bytes(W.tobytes() + small.tobytes())
    proto = linear_model(
        [external_tensor("w.bin", 0, W, "w"), external_tensor("w.bin", W.nbytes, small, "s")]
    )
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    path = model_file.save(model_file.load(tmp_path / "m.onnx"), tmp_path / "out")
    saved = {tensor.name: tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    assert saved["s"].raw_data == small.tobytes()


def test_sha256_of_model_and_data(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    path = write_external(tmp_path)
    done: list[tuple[int, int]] = []
    digests = model_file.sha256_of(path, lambda *args: done.append(args))
    assert digests == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("m.onnx", "w.bin")
    }
    assert done[-1][0] == done[-1][1] == path.stat().st_size + W.nbytes
    (tmp_path / "i.onnx").write_bytes(inline_model().SerializeToString())
    assert list(model_file.sha256_of(tmp_path / "i.onnx")) == ["i.onnx"]


def test_two_thousand_nodes_load_and_save_quickly(tmp_path: Path):
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([16, 16]))
    nodes, last = [], x
    initializers = []
    for index in range(2000):
        w = edits.constant(ir.tensor(np.full((16, 16), index, np.float32)), f"w{index}")
        initializers.append(w)
        node = ir.node("Add", [last, w], name=f"n{index}")
        last = node.outputs[0]
        nodes.append(node)
    last.type, last.shape = x.type, x.shape
    graph = ir.Graph([x], [last], nodes=nodes, initializers=initializers, opset_imports={"": 21}, name="g")
    path = model_file.save(ir.Model(graph, ir_version=10), tmp_path / "a")
    model = model_file.load(path)
    assert len(model.graph) == 2000
    model_file.save(model, tmp_path / "b")
    assert (tmp_path / "b" / "model.onnx").read_bytes() == path.read_bytes()
