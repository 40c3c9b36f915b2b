"""report.html: what it shows, that nothing of a model's names can break out of it, and that it asks for nothing from elsewhere."""

from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

import qcompiler
from qcompiler.errors import ResourceError
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.model_report import make_report
from qcompiler.report.page.page import check_page, page_html, write_page
from tests import command_models as models
from tests.whole_page import is_whole


@pytest.mark.page
def test_a_compile_leaves_a_page_with_its_layers_histograms_and_recipe(tmp_path: Path) -> None:
    made = qcompiler.compile(
        models.decoder(tmp_path), "w4a16-rtn", settings=["group_size=32"], output=tmp_path / "out"
    )
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    is_whole(page)
    assert all(layer.name in page for layer in made.report.layers)
    assert "quantize_weights" in page and "group_size: 32" in page and page.count("<figure") >= 4
    assert str(tmp_path / "out" / "model.onnx") in page and "out.work" not in page


def test_measured_on_data_it_tells_errors_and_classes(tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    made = qcompiler.compile(source, "w4a16-rtn", settings=["group_size=16"], output=tmp_path / "out")
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((8, 64), np.float32))
    report = make_report(made.path, source, EvaluationData(data=str(data)))
    assert report.evaluation is not None and report.confusion is not None
    assert report.confusion.rows == 8 and sum(map(sum, report.confusion.counts)) <= 8
    page = page_html(report)
    is_whole(page)
    assert f"{report.evaluation.sqnr_db:.1f} dB" in page and '<h2 id="classes">' in page


def test_names_of_a_model_are_text_and_no_markup(tmp_path: Path) -> None:
    report = make_report(models.decoder(tmp_path))
    hostile = "</script><script>alert(1)</script>"
    page = page_html(
        replace(report, layers=[replace(layer, name=hostile) for layer in report.layers], notes=[hostile])
    )
    is_whole(page)
    assert "alert(1)</script>" not in page and page.count("<script>") == 1


def test_a_file_that_is_no_page_is_kept(tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    place.write_text("mine")
    with pytest.raises(ResourceError, match="is no report"):
        check_page(place, force=False)
    check_page(place, force=True)
    write_page(make_report(models.decoder(tmp_path)), place)
    check_page(place, force=False)  # ours may be written anew
    with pytest.raises(ResourceError, match="there is no folder"):
        check_page(tmp_path / "nowhere" / "report.html", force=False)


def test_infinite_figures_are_said_and_not_drawn(tmp_path: Path) -> None:
    report = make_report(models.decoder(tmp_path))
    exact, lost, plain = (
        replace(report.layers[0], name=name, block="b", error=error, sqnr_db=sqnr)
        for name, error, sqnr in (("exact", 0.0, inf), ("lost", inf, -inf), ("plain", 0.25, 6.0))
    )
    page = page_html(replace(report, layers=[exact, lost, replace(plain, block="c")]))
    is_whole(page)
    assert '<td class="n" data-value="1000000000.0">∞</td>' in page and "-∞" in page
    assert "plain: 2.50e-01" in page and "lost: inf" not in page
