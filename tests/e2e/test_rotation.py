"""transform: rotate through a whole compile: said in the report, kept on the way, and made again by a run that goes on."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from qcompiler.api import Options, compile
from qcompiler.graph import model_file
from qcompiler.report.compile_summary import compile_summary
from qcompiler.report.inspect_model import inspect
from tests.small_decoders import TOKENS, decoder
from tests.small_models import run

SETTINGS = ["transform=rotate", "group_size=16"]


def _saved(folder: Path, **changed: Any) -> Path:
    path = folder / "float.onnx"
    onnx.save(decoder("rms_pow", **changed), path)
    return path


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.stem != "report"}


def test_the_report_says_what_was_rotated(tmp_path: Path) -> None:
    done = compile(
        _saved(tmp_path, tied=True), "w4a16-rtn", settings=SETTINGS, output=tmp_path / "out",
        options=Options(verify_each=True, dump_ir=tmp_path / "ir"),
    )  # fmt: skip
    report = json.loads((done.folder / "report.json").read_text())
    (stream,), (product,) = report["rotation"]["streams"], report["rotation"]["products"]
    assert stream.startswith(
        "32 channels (Hadamard 32): written by 5, read by 9, 4 norms' weights folded, 1 explicit"
    )
    assert report["rotation"]["heads"] == 2
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(compile_summary(done.report, "out"))
    assert re.search(r"rotated +stream of 32 channels .*\nrotated +heads of 2 layers", console.export_text())
    rows = {row.name: row for row in inspect(done.path).products}
    assert rows[product].reason.startswith("made by rotate: g in the rotated basis")
    assert len(list((tmp_path / "ir").glob("*-rotate/model.onnx"))) == 1


def test_rotation_alone_keeps_the_function(tmp_path: Path) -> None:
    """--stop-after rotate: a dozen products with an orthogonal matrix in float32."""
    source = _saved(tmp_path)
    done = compile(
        source, "w4a16-rtn", settings=SETTINGS, output=tmp_path / "out", options=Options(stop_after="rotate")
    )
    before, after = (run(path, {"input_ids": TOKENS})["logits"] for path in (source, done.path))
    assert np.linalg.norm(after - before) <= 1e-4 * np.linalg.norm(before)
    again = compile(
        done.path,
        "w4a16-rtn",
        settings=SETTINGS,
        output=tmp_path / "again",
        options=Options(stop_after="rotate"),
    )
    assert again.report.warnings == [
        "not rotated: residual streams: rotated by an earlier compile",
        "not rotated: heads of attention: rotated by an earlier compile",
    ]


def test_a_seed_decides(tmp_path: Path) -> None:
    source = _saved(tmp_path)
    found = [
        _bytes(
            compile(
                source, "w4a16-rtn", settings=SETTINGS, output=tmp_path / str(n), options=Options(seed=s)
            ).folder
        )
        for n, s in enumerate((0, 0, 1))
    ]
    assert found[0] == found[1]
    assert found[0]["model.onnx.data"] != found[2]["model.onnx.data"]


@pytest.mark.parametrize("at", ["rotating", "observing"])
def test_going_on_gives_the_bytes_of_an_unbroken_run(at: str, tmp_path: Path) -> None:
    """Stopped while its weights are quantized, and while they are rotated (then nothing is finished, and all is done again)."""
    source, data = _saved(tmp_path), tmp_path / "data.npz"
    np.savez(data, input_ids=np.random.default_rng(0).integers(0, 1024, (1, 24)))
    given: dict[str, Any] = {"recipe": "w4a16-gptq", "settings": SETTINGS, "calibration": data}
    unbroken = _bytes(compile(source, output=tmp_path / "unbroken", **given).folder)
    seen: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        seen.append(what)
        if sum(each.startswith(at) for each in seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile(source, output=tmp_path / "out", progress=stop, **given)
    resumed = compile(source, output=tmp_path / "out", options=Options(resume=True), **given)
    assert _bytes(resumed.folder) == unbroken


def test_a_model_folder_is_marked(tmp_path: Path) -> None:
    done = compile(_saved(tmp_path), "w4a16-rtn", settings=SETTINGS, output=tmp_path / "out")
    assert model_file.load(done.path).metadata_props["qcompiler.rotated"] == "stream heads"
