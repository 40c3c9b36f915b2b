"""What the target ort says of schemes, of a broken model and of a disk without room."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.errors import PromiseError, ResourceError
from qcompiler.graph.kernel_node import BLOCK_SIZES
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.targets import ort
from tests import command_models as models


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_its_blocks_are_taken(size: int) -> None:
    assert ort.supports(QuantScheme(4, False, Granularity.GROUP, size)) is None


@pytest.mark.parametrize("granularity", [Granularity.CHANNEL, Granularity.TENSOR])
def test_whole_rows_and_weights_are_taken(granularity: Granularity) -> None:
    assert ort.supports(QuantScheme(4, False, granularity)) is None


@pytest.mark.parametrize("size", [8, 48, 512])
def test_other_groups_are_refused_with_all_that_are_taken(size: int) -> None:
    refusal = ort.supports(QuantScheme(4, False, Granularity.GROUP, size))
    assert refusal is not None and refusal.startswith(f"group_size {size}: ")
    assert refusal.endswith("use one of 16, 32, 64, 128, 256, channel, tensor")


def test_blocks_of_codebooks_are_those_of_their_kernel() -> None:
    assert ort.supports(QuantScheme(4, True, Granularity.GROUP, 64, "float32", "nf4")) is None
    refusal = ort.supports(QuantScheme(4, True, Granularity.GROUP, 48, "float32", "nf4"))
    assert refusal == "group_size 48: MatMulBnb4 has no such blocks; use one of 16, 32, 64, 128, 256"


def test_outliers_are_remarked_on() -> None:
    int4 = QuantScheme(4, True, Granularity.GROUP, 64)
    (line,) = ort.remark(int4, False, True)
    assert "no stock kernel" in line
    assert ort.remark(int4, False, False) == []


def test_outliers_hide_no_other_remark() -> None:
    two_level = QuantScheme(4, True, Granularity.GROUP, 32, two_level=True)
    plain, sparse = ort.remark(two_level, True, True)
    assert "no kernel looks up rows" in plain and "outliers" in sparse


def test_a_codebook_that_no_kernel_reads_is_remarked_on() -> None:
    nf4, e2m1 = (QuantScheme(4, True, Granularity.GROUP, 64, "float32", dtype) for dtype in ("nf4", "e2m1"))  # type: ignore[arg-type]
    assert ort.remark(nf4, False, False) == []
    assert "rows" in ort.remark(nf4, True, False)[0] and "e2m1" in ort.remark(e2m1, False, False)[0]
    assert ort.remark(QuantScheme(4, True, Granularity.GROUP, 64), True, False) == []


def full_disk(*, prefix: str, dir: Path) -> str:
    """A folder whose file of weights takes nothing: a full disk to ONNX Runtime."""
    folder = Path(dir) / f"{prefix}full"
    folder.mkdir()
    (folder / "optimized.data").symlink_to("/dev/full")
    return str(folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_no_broken_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.external_mlp(tmp_path)
    monkeypatch.setattr(tempfile, "mkdtemp", full_disk)
    with pytest.raises(ResourceError, match="cannot write its optimized copy of the model there; free space"):
        ort.verify(model, [])
    assert not (tmp_path / ".verify-full").exists()


def test_room_for_the_copy_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.external_mlp(tmp_path)
    nearly = model.stat().st_size + 1000  # the weights beside it are 64 kB
    usage = shutil.disk_usage(tmp_path)._replace(free=nearly)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(ResourceError, match="MB needed"):
        ort.verify(model, [])


def test_a_model_that_does_not_load_is_a_broken_promise(tmp_path: Path) -> None:
    path = models.mlp(tmp_path)
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((3, 128), np.float32), "fc1"))
    onnx.save(model, path)
    with pytest.raises(PromiseError, match=r"float\.onnx: ONNX Runtime .* cannot load the compiled model"):
        ort.verify(path, [])
