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
from qcompiler.graph.mapped_tensor import MappedTensor

W = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
X = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64)


def _external(location: str, offset: int, array: np.ndarray, name: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": array.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _model(initializers: list[TensorProto], **changes: object) -> onnx.ModelProto:
    """y = x @ w + small."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="matmul"),
        helper.make_node("Add", ["h", "small"], ["y"], name="add"),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 32])],
        [*initializers, onnx.numpy_helper.from_array(np.ones(32, np.float32), "small")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _inline() -> onnx.ModelProto:
    return _model([onnx.numpy_helper.from_array(W, "w")])


def _write_external(folder: Path, location: str = "w.bin", offset: int = 0) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(_model([_external(location, offset, W, "w")]).SerializeToString())
    return path


def _run(path: Path) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


EXPECTED = X @ W + 1


def _mapped(model: ir.Model, name: str = "w") -> MappedTensor:
    tensor = model.graph.initializers[name].const_value
    assert isinstance(tensor, MappedTensor)
    return tensor


# loading


def test_external_weights_stay_in_their_file(tmp_path: Path):
    path = _write_external(tmp_path, offset=12)
    (tmp_path / "w.bin").write_bytes(bytes(12) + W.tobytes())
    assert np.array_equal(_mapped(model_file.load(path)).numpy(), W)


def test_inline_weights_stay_in_the_model_file(tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(_inline().SerializeToString())
    model = model_file.load(path)
    assert _mapped(model).path == str(path)
    assert np.array_equal(_mapped(model).numpy(), W)


def test_external_data_in_a_subfolder_and_through_a_link_inside(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "real.bin").write_bytes(W.tobytes())
    (tmp_path / "w.bin").symlink_to("data/real.bin")
    for location in ("data/real.bin", "w.bin", "data/../w.bin"):
        assert np.array_equal(_mapped(model_file.load(_write_external(tmp_path, location))).numpy(), W)


def test_a_hard_linked_data_file_is_taken(tmp_path: Path):
    (tmp_path / "other.bin").write_bytes(W.tobytes())
    os.link(tmp_path / "other.bin", tmp_path / "w.bin")
    model = model_file.load(_write_external(tmp_path))
    assert _run(model_file.save(model, tmp_path / "out")) == pytest.approx(EXPECTED)


def test_a_linked_inline_model_is_followed(tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_bytes(_inline().SerializeToString())
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.onnx").symlink_to("../blobs/0a1b")
    model = model_file.load(tmp_path / "snapshot" / "model.onnx")
    assert np.array_equal(_mapped(model).numpy(), W)


def _cached(folder: Path, target: str = "../blobs/2c3d") -> Path:
    """As a download cache lays it out: model and data are links into a folder of blobs."""
    for name in ("blobs", "snapshot"):
        (folder / name).mkdir()
    (folder / "blobs" / "2c3d").write_bytes(W.tobytes())
    _write_external(folder / "blobs").rename(folder / "blobs" / "0a1b")
    (folder / "snapshot" / "model.onnx").symlink_to("../blobs/0a1b")
    (folder / "snapshot" / "w.bin").symlink_to(target)
    return folder / "snapshot" / "model.onnx"


def test_model_and_data_linked_into_one_folder(tmp_path: Path):
    path = _cached(tmp_path)
    model = model_file.load(path)
    assert np.array_equal(_mapped(model).numpy(), W)
    assert _run(model_file.save(model, tmp_path / "out")) == pytest.approx(EXPECTED)
    assert list(model_file.sha256_of(path)) == ["model.onnx", "w.bin"]


def test_data_linked_elsewhere_than_the_model(tmp_path: Path):
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    _refused(_cached(tmp_path, target="../secret.bin"), "out of the model's folder")


def test_a_folder_stands_for_the_model_that_a_compile_wrote_there(tmp_path: Path):
    saved = model_file.save(ir.from_proto(_inline()), tmp_path / "out")
    assert model_file.model_path(tmp_path / "out") == saved
    assert np.array_equal(_mapped(model_file.load(tmp_path / "out")).numpy(), W)
    assert model_file.files_of(tmp_path / "out") == model_file.files_of(saved)


def test_a_folder_without_a_model(tmp_path: Path):
    _refused(tmp_path, "a folder without model.onnx; give the .onnx file in it")


def test_the_other_name_of_the_default_domain(tmp_path: Path):
    proto = _inline()
    proto.opset_import[0].domain = "ai.onnx"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert model_file.load(tmp_path / "m.onnx").opset_imports == {"": 21}


def test_nodes_out_of_order_are_sorted(tmp_path: Path):
    proto = _inline()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert [node.name for node in model_file.load(tmp_path / "m.onnx").graph] == ["matmul", "add"]


# what is refused


def _refused(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        model_file.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 200 + 2 * len(str(path))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty file"),
        (b"Not a model, but a text that goes on for a while.\n" * 20, "not an ONNX"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not an ONNX"),
        (np.random.default_rng(0).bytes(5000), "not an ONNX"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (helper.make_tensor_value_info("x", 1, [2]).SerializeToString(), "not an ONNX"),
        (onnx.ModelProto(ir_version=10, producer_name="p").SerializeToString(), "holds no graph"),
        (bytes(100), "not an ONNX"),
    ],
    ids=["empty", "text", "html", "random", "lfs", "other message", "no graph", "zeros"],
)
def test_what_is_not_a_model(tmp_path: Path, content: bytes, match: str):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    _refused(path, match)


def test_random_bytes_never_crash(tmp_path: Path):
    rng = np.random.default_rng(1)
    good = _inline().SerializeToString()
    path = tmp_path / "m.onnx"
    for seed in range(200):
        broken = bytearray(good)
        for position in rng.integers(0, len(good) if seed % 2 else 200, 5):
            broken[position] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            model_file.load(path)
        except InputError as error:
            assert "\n" not in str(error)


def test_every_truncation_is_refused(tmp_path: Path):
    good = _inline().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in [*range(1, 400), *range(400, len(good), 97), len(good) - 1]:
        path.write_bytes(good[:length])
        _refused(path, "truncated|no graph|no opset|not an ONNX")


def test_a_path_that_cannot_be(tmp_path: Path):
    _refused(tmp_path / ("n" * 300), "cannot be read")
    _refused(tmp_path / "m.onnx" / "m.onnx", "no such file")


def test_missing_file_and_folder(tmp_path: Path):
    _refused(tmp_path / "none.onnx", "no such file")
    _refused(tmp_path, "a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(_inline().SerializeToString())
    path.chmod(0)
    _refused(path, "cannot be read")


def test_missing_external_data(tmp_path: Path):
    _refused(_write_external(tmp_path), "initializer w: external data 'w.bin' is missing")


@pytest.mark.parametrize("size", [0, 100, W.nbytes - 1])
def test_short_external_data(tmp_path: Path, size: int):
    (tmp_path / "w.bin").write_bytes(W.tobytes()[:size])
    _refused(_write_external(tmp_path), f"w.bin has {size} bytes, {W.nbytes} needed")


def test_external_data_that_is_an_lfs_pointer(tmp_path: Path):
    (tmp_path / "w.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    _refused(_write_external(tmp_path), "git lfs pull")


@pytest.mark.parametrize("location", ["../secret.bin", "a/../../secret.bin", "link.bin", "folder/secret.bin"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str):
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "folder").symlink_to(tmp_path)
    _refused(_write_external(folder, location), "outside the model's folder|out of the model's folder")


def test_a_folder_with_the_same_beginning_is_outside(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model2").mkdir()
    (tmp_path / "model2" / "w.bin").write_bytes(W.tobytes())
    _refused(_write_external(tmp_path / "model", "../model2/w.bin"), "outside the model's folder")


def test_absolute_empty_looping_and_odd_locations(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    _refused(_write_external(tmp_path, str(tmp_path / "w.bin")), "not a path relative")
    _refused(_write_external(tmp_path, ""), "not a path relative")
    _refused(_write_external(tmp_path, "loop"), "is missing")
    _refused(_write_external(tmp_path, "sub"), "is not a file")
    _refused(_write_external(tmp_path, "pipe"), "is not a file")
    _refused(_write_external(tmp_path, "a\0b"), "is missing")


def test_negative_offset_and_wrong_length(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    _refused(_write_external(tmp_path, offset=-4), "negative")
    tensor = _external("w.bin", 0, W[:10], "w")
    del tensor.dims[:]
    tensor.dims.extend(W.shape)
    path = tmp_path / "m.onnx"
    path.write_bytes(_model([tensor]).SerializeToString())
    _refused(path, "do not fit")


def _no_outputs(proto: onnx.ModelProto) -> None:
    del proto.graph.output[:]


def _unknown_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "nobody"


def _unknown_input(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].input[1] = "nobody"


def _two_producers(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].output[0] = "h"


def _cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "y"


def _two_initializers(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(proto.graph.initializer[0])


def _short_tensor(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[1].raw_data = b"abc"


def _untyped_tensor(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[1].data_type = 0


def _not_utf8(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].MergeFromString(b"\x1a\x02\xff\xfe")


def _unknown_type(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[1].data_type = 99


def _unknown_domain(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].domain = "com.acme"


def _no_imports(proto: onnx.ModelProto) -> None:
    del proto.opset_import[:]


def _no_default_import(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].domain = "com.acme"


def _future_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 999


def _future_ir(proto: onnx.ModelProto) -> None:
    proto.ir_version = 999


def _sparse(proto: onnx.ModelProto) -> None:
    proto.graph.sparse_initializer.add().values.name = "s"


def _training(proto: onnx.ModelProto) -> None:
    proto.training_info.add()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_no_outputs, "no outputs"),
        (_unknown_output, "nothing computes the output 'nobody'"),
        (_unknown_input, "node add .Add. reads 'nobody'"),
        (_two_producers, "redeclared"),
        (_cycle, "cycle"),
        (_two_initializers, "two initializers named 'w'"),
        (_short_tensor, "initializer small: 3 bytes do not fill FLOAT"),
        (_untyped_tensor, "initializer small has no type"),
        (_unknown_type, "not a valid model"),
        (_not_utf8, "is not UTF-8"),
        (_unknown_domain, "no opset import for domain 'com.acme'"),
        (_no_imports, "no opset imports"),
        (_no_default_import, "no opset import for the default domain"),
        (_future_opset, "opset 999"),
        (_future_ir, "IR version 999"),
        (_sparse, "sparse initializer 's'"),
        (_training, "training information"),
    ],
)
def test_an_invalid_model(
    tmp_path: Path,
    change: Callable[[onnx.ModelProto], None],
    match: str,
    capfd: pytest.CaptureFixture[str],
):
    proto = _inline()
    change(proto)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    _refused(path, match)
    assert capfd.readouterr() == ("", "")


# saving


def test_saved_model_runs_and_is_aligned(tmp_path: Path):
    others = [onnx.numpy_helper.from_array(np.ones(300 + i, np.float32), f"o{i}") for i in range(5)]
    proto = _model([*others, onnx.numpy_helper.from_array(W, "w")])
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    done: list[tuple[int, int]] = []

    path = model_file.save(
        model_file.load(tmp_path / "m.onnx"), tmp_path / "out", lambda *args: done.append(args)
    )

    onnx.checker.check_model(path)
    assert np.allclose(_run(path), EXPECTED, rtol=1e-6)
    saved = {tensor.name: tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    assert saved["small"].data_location == TensorProto.DEFAULT  # 128 bytes
    for name in ("w", *(f"o{i}" for i in range(5))):
        info = onnx.external_data_helper.ExternalDataInfo(saved[name])
        assert info.offset % 64 == 0 and info.location == "model.onnx.data"
    size = (tmp_path / "out" / "model.onnx.data").stat().st_size
    assert done[-1] == (size, size)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.onnx", "model.onnx.data"]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(_inline().SerializeToString())
    for name in ("a", "b"):
        model_file.save(model_file.load(tmp_path / "m.onnx"), tmp_path / name)
    model_file.save(model_file.load(tmp_path / "a" / "model.onnx"), tmp_path / "c")
    for file in ("model.onnx", "model.onnx.data"):
        contents = {(tmp_path / name / file).read_bytes() for name in ("a", "b", "c")}
        assert len(contents) == 1


def test_the_model_is_unchanged_by_saving(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(_inline().SerializeToString())
    model = model_file.load(tmp_path / "m.onnx")
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    model_file.save(model, tmp_path / "out")
    assert all(value.const_value is before[name] for name, value in model.graph.initializers.items())


def test_without_large_tensors_there_is_no_data_file(tmp_path: Path):
    model = ir.serde.deserialize_model(_inline())
    model_file.save(model, tmp_path)
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros((2, 2), np.float32), name="w")
    model_file.save(model, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_shared_tensors_are_written_once(tmp_path: Path):
    w = ir.tensor(W)
    model = ir.serde.deserialize_model(_model([onnx.numpy_helper.from_array(W, n) for n in ("w", "v")]))
    for name in ("w", "v"):
        model.graph.initializers[name].const_value = w
    path = model_file.save(model, tmp_path / "a")
    assert (tmp_path / "a" / "model.onnx.data").stat().st_size == W.nbytes
    # and from a file in which two initializers name one place
    reloaded = model_file.load(path)
    assert {_mapped(reloaded, name).offset for name in ("w", "v")} == {0}
    model_file.save(reloaded, tmp_path / "b")
    assert (tmp_path / "b" / "model.onnx.data").stat().st_size == W.nbytes
    assert np.allclose(_run(tmp_path / "b" / "model.onnx"), EXPECTED, rtol=1e-6)


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
    path = model_file.save(ir.serde.deserialize_model(_inline()), tmp_path)
    before = (tmp_path / "model.onnx.data").read_bytes()
    with pytest.raises(InputError, match="another folder"):
        model_file.save(model_file.load(path), tmp_path)
    (tmp_path / "same").symlink_to(tmp_path)
    with pytest.raises(InputError, match="another folder"):
        model_file.save(model_file.load(path), tmp_path / "same")
    assert (tmp_path / "model.onnx.data").read_bytes() == before


def test_saving_onto_its_own_inline_model_is_refused(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(_inline().SerializeToString())
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
        model_file.save(ir.serde.deserialize_model(_inline()), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_is_really_full(tmp_path: Path):
    """/dev/full takes no byte; NumPy's own tofile would report it without a reason."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    from qcompiler.graph.disk import writing
    from qcompiler.graph.external_data import tensor_slots

    plan = data_file.DataFile(list(tensor_slots(ir.serde.deserialize_model(_inline()))))
    with pytest.raises(ResourceError, match="disk is full"), writing(full), full.open("wb") as file:
        plan.write(file, None)


def test_too_little_space_is_known_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ResourceError, match="0 MB needed, 0 MB free"):
        model_file.save(ir.serde.deserialize_model(_inline()), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(tmp_path: Path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(ResourceError, match="not writable"):
        model_file.save(ir.serde.deserialize_model(_inline()), tmp_path / "out")


def test_more_than_two_gigabytes_inline_is_refused(tmp_path: Path):
    """The attribute of an operator other than Constant cannot move; nothing of it is made."""

    def never() -> ir.TensorProtocol:
        raise AssertionError

    shape = ir.Shape([600_000_000])
    model = ir.serde.deserialize_model(_inline())
    table = ir.AttrTensor("table", ir.LazyTensor(never, ir.DataType.FLOAT, shape, name="t"))
    model.graph[0].attributes.add(table)
    with pytest.raises(InputError, match=r"node matmul, attribute table: 2.4 GB must stay inside"):
        model_file.save(model, tmp_path)


def test_an_initializer_that_lost_its_tensor_is_our_defect(tmp_path: Path):
    model = ir.serde.deserialize_model(_inline())
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
    model = ir.serde.deserialize_model(_inline())
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
    proto = _model([_external("w.bin", 0, W, "w"), _external("w.bin", W.nbytes, small, "s")])
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    path = model_file.save(model_file.load(tmp_path / "m.onnx"), tmp_path / "out")
    saved = {tensor.name: tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    assert saved["s"].raw_data == small.tobytes()


def test_sha256_of_model_and_data(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    path = _write_external(tmp_path)
    done: list[tuple[int, int]] = []
    digests = model_file.sha256_of(path, lambda *args: done.append(args))
    assert digests == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("m.onnx", "w.bin")
    }
    assert done[-1][0] == done[-1][1] == path.stat().st_size + W.nbytes
    (tmp_path / "i.onnx").write_bytes(_inline().SerializeToString())
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
