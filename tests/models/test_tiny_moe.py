"""models.tiny_moe: one function in three forms of graph, all of which are compiled expert by expert."""

import pytest

pytest.importorskip("torch")

import numpy as np

from models import language, tiny_moe
from qcompiler.api import Options, compile

pytestmark = pytest.mark.slow

FORMS = list(tiny_moe.Form)


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_are_one_function(form: tiny_moe.Form) -> None:
    assert tiny_moe.measure(tiny_moe.build(form).path)["kl_to_float"] < 1e-9


@pytest.mark.parametrize("form", FORMS)
def test_experts_are_quantized_from_what_reached_them(
    form: tiny_moe.Form, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings, kl = ["group_size=32", "accuracy_level=0"], {}
    for recipe in ("w4a16-rtn", "w4a16-best"):
        done = compile(
            tiny_moe.build(form).path,
            recipe,
            calibration=str(tiny_moe.calibration_data()),
            output=tmp_path_factory.mktemp("moe") / "out",
            settings=[*settings, "symmetric=false"],
            options=Options(),
        )
        kl[recipe] = tiny_moe.measure(done.path)["kl_to_float"]
        experts = [
            layer for layer in done.report.layers if ".mlp." in layer.name and "router" not in layer.name
        ]
        assert len(experts) == 2 * tiny_moe.CONFIG.layers * tiny_moe.EXPERTS
    told = [line for line in done.report.warnings if "never reached 1 of 4 experts (3)" in line]
    # Where every expert computes every token the graph does not say which of them count.
    assert len(told) == (0 if form is tiny_moe.Form.DENSE else 2 * tiny_moe.CONFIG.layers)
    assert kl["w4a16-best"] < kl["w4a16-rtn"]


def test_data_is_another_for_evaluation() -> None:
    calibration, evaluation = (
        np.load(path)["input_ids"] for path in (tiny_moe.calibration_data(), tiny_moe.evaluation_data())
    )
    assert calibration.shape == evaluation.shape and (calibration != evaluation).any()
    session = language.session(tiny_moe.build(tiny_moe.Form.DENSE).path)
    assert language.logits(session, calibration[:1, :5]).shape == (1, 5, tiny_moe.CONFIG.vocab)
