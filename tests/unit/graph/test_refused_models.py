"""Loading refuses what is no valid model in one line, and never crashes."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompiler.errors import InputError
from qcompiler.graph import model_file
from tests.model_files import W, assert_refused, external_tensor, inline_model, linear_model, write_external


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
    assert_refused(path, match)


def test_random_bytes_never_crash(tmp_path: Path):
    rng = np.random.default_rng(1)
    good = inline_model().SerializeToString()
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
    good = inline_model().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in [*range(1, 400), *range(400, len(good), 97), len(good) - 1]:
        path.write_bytes(good[:length])
        assert_refused(path, "truncated|no graph|no opset|not an ONNX")


def test_a_path_that_cannot_be(tmp_path: Path):
    assert_refused(tmp_path / ("n" * 300), "cannot be read")
    assert_refused(tmp_path / "m.onnx" / "m.onnx", "no such file")


def test_missing_file_and_folder(tmp_path: Path):
    assert_refused(tmp_path / "none.onnx", "no such file")
    assert_refused(tmp_path, "a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(inline_model().SerializeToString())
    path.chmod(0)
    assert_refused(path, "cannot be read")


def test_missing_external_data(tmp_path: Path):
    assert_refused(write_external(tmp_path), "initializer w: external data 'w.bin' is missing")


@pytest.mark.parametrize("size", [0, 100, W.nbytes - 1])
def test_short_external_data(tmp_path: Path, size: int):
    (tmp_path / "w.bin").write_bytes(W.tobytes()[:size])
    assert_refused(write_external(tmp_path), f"w.bin has {size} bytes, {W.nbytes} needed")


def test_external_data_that_is_an_lfs_pointer(tmp_path: Path):
    (tmp_path / "w.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert_refused(write_external(tmp_path), "git lfs pull")


@pytest.mark.parametrize("location", ["../secret.bin", "a/../../secret.bin", "link.bin", "folder/secret.bin"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str):
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "folder").symlink_to(tmp_path)
    assert_refused(write_external(folder, location), "outside the model's folder|out of the model's folder")


def test_a_folder_with_the_same_beginning_is_outside(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model2").mkdir()
    (tmp_path / "model2" / "w.bin").write_bytes(W.tobytes())
    assert_refused(write_external(tmp_path / "model", "../model2/w.bin"), "outside the model's folder")


def test_absolute_empty_looping_and_odd_locations(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert_refused(write_external(tmp_path, str(tmp_path / "w.bin")), "not a path relative")
    assert_refused(write_external(tmp_path, ""), "not a path relative")
    assert_refused(write_external(tmp_path, "loop"), "is missing")
    assert_refused(write_external(tmp_path, "sub"), "is not a file")
    assert_refused(write_external(tmp_path, "pipe"), "is not a file")
    assert_refused(write_external(tmp_path, "a\0b"), "is missing")


def test_negative_offset_and_wrong_length(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    assert_refused(write_external(tmp_path, offset=-4), "negative")
    tensor = external_tensor("w.bin", 0, W[:10], "w")
    del tensor.dims[:]
    tensor.dims.extend(W.shape)
    path = tmp_path / "m.onnx"
    path.write_bytes(linear_model([tensor]).SerializeToString())
    assert_refused(path, "do not fit")


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
    proto = inline_model()
    change(proto)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert_refused(path, match)
    assert capfd.readouterr() == ("", "")
