"""Loading: weights stay mapped in their files, wherever links and folders put these."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph import model_file
from tests.model_files import (
    EXPECTED,
    W,
    assert_refused,
    inline_model,
    mapped_tensor,
    run_file,
    write_external,
)


def test_external_weights_stay_in_their_file(tmp_path: Path):
    path = write_external(tmp_path, offset=12)
    (tmp_path / "w.bin").write_bytes(bytes(12) + W.tobytes())
    assert np.array_equal(mapped_tensor(model_file.load(path)).numpy(), W)


def test_inline_weights_stay_in_the_model_file(tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(inline_model().SerializeToString())
    model = model_file.load(path)
    assert mapped_tensor(model).path == str(path)
    assert np.array_equal(mapped_tensor(model).numpy(), W)


def test_inline_weights_that_were_external_once(tmp_path: Path):
    """onnx.load and onnx.save leave the default data_location behind, in so many bytes."""
    path = tmp_path / "m.onnx"
    proto = inline_model()
    for tensor in proto.graph.initializer:
        tensor.data_location = onnx.TensorProto.DEFAULT
    path.write_bytes(proto.SerializeToString())
    model = model_file.load(path)
    assert np.array_equal(mapped_tensor(model).numpy(), W)
    assert run_file(model_file.save(model, tmp_path / "out")) == pytest.approx(EXPECTED)


def test_external_data_in_a_subfolder_and_through_a_link_inside(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "real.bin").write_bytes(W.tobytes())
    (tmp_path / "w.bin").symlink_to("data/real.bin")
    for location in ("data/real.bin", "w.bin", "data/../w.bin"):
        assert np.array_equal(mapped_tensor(model_file.load(write_external(tmp_path, location))).numpy(), W)


def test_a_hard_linked_data_file_is_taken(tmp_path: Path):
    (tmp_path / "other.bin").write_bytes(W.tobytes())
    os.link(tmp_path / "other.bin", tmp_path / "w.bin")
    model = model_file.load(write_external(tmp_path))
    assert run_file(model_file.save(model, tmp_path / "out")) == pytest.approx(EXPECTED)


def test_a_linked_inline_model_is_followed(tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_bytes(inline_model().SerializeToString())
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.onnx").symlink_to("../blobs/0a1b")
    model = model_file.load(tmp_path / "snapshot" / "model.onnx")
    assert np.array_equal(mapped_tensor(model).numpy(), W)


def _cached(folder: Path, target: str = "../blobs/2c3d") -> Path:
    """As a download cache lays it out: model and data are links into a folder of blobs."""
    for name in ("blobs", "snapshot"):
        (folder / name).mkdir()
    (folder / "blobs" / "2c3d").write_bytes(W.tobytes())
    write_external(folder / "blobs").rename(folder / "blobs" / "0a1b")
    (folder / "snapshot" / "model.onnx").symlink_to("../blobs/0a1b")
    (folder / "snapshot" / "w.bin").symlink_to(target)
    return folder / "snapshot" / "model.onnx"


def test_model_and_data_linked_into_one_folder(tmp_path: Path):
    path = _cached(tmp_path)
    model = model_file.load(path)
    assert np.array_equal(mapped_tensor(model).numpy(), W)
    assert run_file(model_file.save(model, tmp_path / "out")) == pytest.approx(EXPECTED)
    assert list(model_file.sha256_of(path)) == ["model.onnx", "w.bin"]


def test_data_linked_elsewhere_than_the_model(tmp_path: Path):
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    assert_refused(_cached(tmp_path, target="../secret.bin"), "out of the model's folder")


def test_a_folder_stands_for_the_model_that_a_compile_wrote_there(tmp_path: Path):
    saved = model_file.save(ir.from_proto(inline_model()), tmp_path / "out")
    assert model_file.model_path(tmp_path / "out") == saved
    assert np.array_equal(mapped_tensor(model_file.load(tmp_path / "out")).numpy(), W)
    assert model_file.files_of(tmp_path / "out") == model_file.files_of(saved)


def test_a_folder_without_a_model(tmp_path: Path):
    assert_refused(tmp_path, "a folder without model.onnx; give the .onnx file in it")


def test_the_other_name_of_the_default_domain(tmp_path: Path):
    proto = inline_model()
    proto.opset_import[0].domain = "ai.onnx"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert model_file.load(tmp_path / "m.onnx").opset_imports == {"": 21}


def test_nodes_out_of_order_are_sorted(tmp_path: Path):
    proto = inline_model()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert [node.name for node in model_file.load(tmp_path / "m.onnx").graph] == ["matmul", "add"]
