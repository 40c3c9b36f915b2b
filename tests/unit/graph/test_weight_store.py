import errno
import json
import resource
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.errors import InputError, ResourceError
from qcompiler.graph.mapped_tensor import MappedFile
from qcompiler.graph.weight_store import ALIGNMENT, WeightStore


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int64])
def test_reads_back_what_was_added(tmp_path: Path, dtype: type):
    values = np.arange(35).reshape(5, 7).astype(dtype)
    with WeightStore(tmp_path) as store:
        store.add(b"123", ir.DataType.UINT8, [3], "odd")
        tensor = store.add(values, ir.DataType.from_numpy(values.dtype), values.shape, "w")
        assert tensor.offset is not None and tensor.offset % ALIGNMENT == 0
        assert np.array_equal(tensor.numpy(), values)  # while the file is open and grows
        store.add(values, ir.DataType.from_numpy(values.dtype), values.shape, "next")
    assert np.array_equal(tensor.numpy(), values)  # after close
    assert tensor.tobytes() == values.tobytes()
    assert np.array_equal(np.asarray(tensor), values)


def test_sub_byte_types_are_given_packed(tmp_path: Path):
    with WeightStore(tmp_path) as store:
        tensor = store.add(bytes([0x21, 0x43, 0x05]), ir.DataType.UINT4, [5], "w")
    assert tensor.numpy().astype(int).tolist() == [1, 2, 3, 4, 5]
    assert tensor.tobytes() == bytes([0x21, 0x43, 0x05])


def test_chunks_are_written_one_after_the_other(tmp_path: Path):
    chunks = np.arange(1000, dtype=np.float32).reshape(10, 100)
    with WeightStore(tmp_path) as store:
        tensor = store.add((row for row in chunks), ir.DataType.FLOAT, [1000], "w")
        transposed = store.add(chunks.T, ir.DataType.FLOAT, [100, 10], "t")
    assert np.array_equal(tensor.numpy(), chunks.reshape(-1))
    assert np.array_equal(transposed.numpy(), chunks.T)


def test_views_are_read_only_and_outlive_growth(tmp_path: Path):
    with WeightStore(tmp_path) as store:
        first = store.add(np.ones(100, np.float32), ir.DataType.FLOAT, [100], "a").numpy()
        for index in range(20):
            store.add(np.full(5000, index, np.float32), ir.DataType.FLOAT, [5000], f"t{index}").numpy()
        assert (first == 1).all()
        with pytest.raises(ValueError, match="read-only"):
            first[0] = 2


def test_wrong_length_leaves_the_file_as_it_was(tmp_path: Path):
    with WeightStore(tmp_path) as store:
        store.add(b"abc", ir.DataType.UINT8, [3], "a")
        before = store.path.read_bytes()
        with pytest.raises(ValueError, match="5 bytes"):
            store.add([b"ab", b"cde"], ir.DataType.UINT8, [6], "b")
        assert store.path.read_bytes() == before
        assert store.add(b"xyz", ir.DataType.UINT8, [3], "c").tobytes() == b"xyz"


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with WeightStore(tmp_path) as store:
        store.add(b"abc", ir.DataType.UINT8, [3], "a")

        def full(data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        writer = store._writer
        monkeypatch.setattr(store, "_writer", _Writer(writer, full))
        with pytest.raises(ResourceError, match="the disk is full") as caught:
            store.add(bytes(100), ir.DataType.UINT8, [100], "b")
        assert "\n" not in str(caught.value)
        monkeypatch.setattr(store, "_writer", writer)
        assert store.add(b"xyz", ir.DataType.UINT8, [3], "c").tobytes() == b"xyz"


class _Writer:
    def __init__(self, file, write):
        self._file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        WeightStore(tmp_path / "file" / "folder")


def test_a_continued_file_keeps_its_tensors(tmp_path: Path):
    with WeightStore(tmp_path) as store:
        first = store.add(b"abc", ir.DataType.UINT8, [3], "a")
        place = json.loads(json.dumps(first.offset))
    with WeightStore(tmp_path, fresh=False) as store:
        second = store.add(b"defg", ir.DataType.UINT8, [4], "b")
        assert store.at(place, ir.DataType.UINT8, [3], "a").tobytes() == b"abc"
        assert second.tobytes() == b"defg"
        with pytest.raises(ValueError, match="ends at"):
            store.at(64, ir.DataType.UINT8, [400], "c")
    with WeightStore(tmp_path) as store:
        assert store.nbytes == 0


def test_thousands_of_tensors_need_few_descriptors(tmp_path: Path):
    """onnx_ir's own ExternalTensor holds a descriptor for each tensor that was read."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
    try:
        with WeightStore(tmp_path) as store:
            tensors = [
                store.add(np.full(16, i, np.float32), ir.DataType.FLOAT, [16], f"t{i}") for i in range(2000)
            ]
            assert sum(float(tensor.numpy()[0]) for tensor in tensors) == 2000 * 1999 / 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_file_that_shrank_is_an_input_error(tmp_path: Path):
    path = tmp_path / "data"
    path.write_bytes(bytes(10))
    with pytest.raises(InputError, match="10 bytes, 20 expected"):
        MappedFile(path).view(10, 10)
    with pytest.raises(InputError, match="cannot be read"):
        MappedFile(tmp_path / "gone").view(0, 1)
    assert MappedFile(tmp_path / "gone").view(0, 0).size == 0
