"""report.json: what is written is read back as the same objects."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from qcompiler.graph.weights import Role
from qcompiler.pass_manager import PassRecord
from qcompiler.passes.assign_bits import MixedResult
from qcompiler.passes.layer_result import LayerResult
from qcompiler.passes.rotate import RotationResult
from qcompiler.passes.sensitivity import Rounding, Sensitivity
from qcompiler.recipe.plan import SkippedProduct
from qcompiler.report.compile_report import CompileReport
from qcompiler.report.fallback import Fallback

PLAIN = CompileReport(
    model="m.onnx", recipe="mixed-auto", target="ort",
    layers=[
        LayerResult(
            "fc", "linear", "MatMul", (8, 32), "int4 g32 sym", "rtn", "rule 1", 1024, 144, 0.01, 0.02, 20.0, 0.995, ("a note",), "rank 16"
        )
    ],
    skipped=[SkippedProduct("conv", Role.CONV, "Conv", (4, 3, 3, 3), "too small", 432)],
    passes=[PassRecord("normalize", True, 0.25, ("y: kept",)), PassRecord("lower", False, 0.0)],
    running={"MatMulNBits": 1}, calibration={"source": "text.txt", "samples": 16}, float_bytes=2048, bytes=512, seconds=1.5,
    peak_anonymous_bytes=4096, warnings=["a warning"],
)  # fmt: skip
FULL = replace(
    PLAIN,
    mixed=MixedResult(
        "output", "kl", 4, (4, 8), (Sensitivity("fc", 0.1, Rounding(4, False), (0.1, 0.0), (144, 272)),), (4,), 144, 0.1, ((144, 0.1), (272, 0.0))
    ),
    rotation=RotationResult(["32 channels"], 2, ["g in the rotated basis"], ["heads: not found"]),
    fallback=Fallback(0.01, "rows", 0.005, ("conv",), (0.2,), ((0, 0.05), (1, 0.005))),
    resumed=1,
)  # fmt: skip


@pytest.mark.parametrize("report", [PLAIN, FULL], ids=["plain", "full"])
def test_what_is_written_is_read_back(report: CompileReport, tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    report.write(place)
    assert CompileReport.read(place) == report


def test_infinity_is_null_in_the_file_and_infinity_again(tmp_path: Path) -> None:
    exact = replace(PLAIN, layers=[replace(PLAIN.layers[0], output_error=0.0, sqnr_db=math.inf)])
    place = tmp_path / "report.json"
    exact.write(place)
    assert json.loads(place.read_text())["layers"][0]["sqnr_db"] is None
    assert CompileReport.read(place) == exact


def test_what_there_is_none_of_is_an_empty_dictionary() -> None:
    plain = PLAIN.plain()
    assert (plain["mixed"], plain["rotation"], plain["fallback"]) == ({}, {}, {})
    assert list(plain) == list(asdict(PLAIN)) and FULL.plain() == asdict(FULL)


def test_what_is_no_report_of_this_version_is_none(tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    assert CompileReport.read(place) is None
    PLAIN.write(place)
    content = json.loads(place.read_text())
    layer = content["layers"][0]
    others = [
        "{", "[]", {}, content | {"new": 1}, {**content, "resumed": "1"}, {**content, "seconds": "1.5"}, {**content, "layers": {}},
        {**content, "layers": [layer | {"new": 1}]}, {**content, "layers": [{**layer, "shape": [8, 32, 1]}]},
        {**content, "layers": [{name: layer[name] for name in list(layer)[:-1]}]},
        {**content, "skipped": [content["skipped"][0] | {"role": "unheard of"}]}, {**content, "mixed": {"bits": [4]}},
    ]  # fmt: skip
    for other in others:
        place.write_text(other if isinstance(other, str) else json.dumps(other))
        assert CompileReport.read(place) is None, other
