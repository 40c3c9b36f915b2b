"""What --max-drop counts, on models whose outputs are known."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.passes.measured_outputs import End
from qcompiler.report.drop import AGREEMENT, RELATIVE_ERROR, DropMeter
from tests.small_models import Array, make_model, save_model, weight

K, CLASSES = 16, 5
CUT = (
    f"g (float[M,{K}] x, int64[1] end) => (float[M,N] y) {{ h = MatMul(x, w) y = Slice(h, zero, end, one) }}"
)


def _save(folder: Path, w: Array) -> Path:
    folder.mkdir()
    parts = {"w": w, "zero": np.zeros(1, np.int64), "one": np.ones(1, np.int64)}
    return save_model(make_model(CUT, parts), folder)


def _feed(seed: int, end: int, rows: int = 8) -> dict[str, Array]:
    x = np.random.default_rng(seed).standard_normal((rows, K)).astype(np.float32)
    return {"x": x, "end": np.array([end], np.int64)}


@pytest.mark.parametrize("ends", [(CLASSES, 1), (1, CLASSES)], ids=["classes first", "classes last"])
def test_an_output_may_hold_classes_on_some_feeds_alone(ends: tuple[int, int], tmp_path: Path) -> None:
    """Rows and squares are not added up: each measure has its own share, and the worst counts."""
    w = weight(K, CLASSES)
    turned = w.copy()
    turned[:, 1] *= -1  # the first column, which is all that the feed without classes sees, stays
    feeds = [_feed(seed, end) for seed, end in enumerate(ends)]
    reference, made = _save(tmp_path / "float", w), _save(tmp_path / "made", turned)
    meter = DropMeter(
        reference, [End(ir.Value(name="y"), CLASSES)], feeds, tmp_path, lambda what, done, total: None
    )
    assert set(meter.measure.split(" / ")) == {AGREEMENT, RELATIVE_ERROR}
    x = next(feed["x"] for feed in feeds if feed["end"][0] == CLASSES)
    differ = np.mean((x @ w).argmax(1) != (x @ turned).argmax(1))
    assert 0 < differ < 1
    assert meter.drop_of(made) == pytest.approx(differ, abs=1e-12)
    assert meter.drop_of(reference) == 0
