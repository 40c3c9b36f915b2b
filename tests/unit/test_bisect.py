"""The first pass that breaks a model."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.bisect import ParityProbe, bisect_passes
from qcompiler.errors import CalibrationError
from qcompiler.graph import model_file
from qcompiler.pass_manager import NamedPass, run_passes
from qcompiler.report.bisect_layers import Bound
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.tapped_model import open_tapped
from tests import command_models as models
from tests.small_models import weight

QUICK = EvaluationData(windows=2, length=24)


class Scale(ir.passes.InPlacePass):
    """Multiplies a weight."""

    def __init__(self, name: str, factor: float) -> None:
        self._name, self._factor = name, factor

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        value = model.graph.initializers[self._name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(self._factor), name=self._name)
        return ir.passes.PassResult(model, True)


class Idle(ir.passes.InPlacePass):
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, False)


class Drop(ir.passes.InPlacePass):
    """Leaves a model that does not run."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        del model.graph.initializers["fc2"]
        return ir.passes.PassResult(model, True)


DEFAULT = Bound()


def probed(folder: Path, passes: list[NamedPass], bound: Bound = DEFAULT) -> ParityProbe:
    path = models.mlp(folder)
    with open_tapped(path) as reference:
        probe = ParityProbe(reference, [{"x": weight(32, 64, seed=3, scale=1.0)}], bound, folder / "work")
        run_passes(model_file.load(path), passes, [probe])
        return probe


def named(name: str, run: ir.passes.InPlacePass) -> NamedPass:
    return NamedPass(name, run, "for the test")


def test_the_pass_that_breaks_is_named_and_its_model_kept(tmp_path: Path) -> None:
    probe = probed(
        tmp_path,
        [
            named("same", Scale("fc1", 1.0)),
            named("idle", Idle()),
            named("wrong", Scale("fc1", 2.0)),
            named("worse", Scale("fc2", 2.0)),
        ],
    )
    assert [(each.name, bool(each.why)) for each in probe.passes] == [
        ("same", False), ("idle", False), ("wrong", True), ("worse", False),
    ]  # fmt: skip
    # y is doubled: noise as strong as the signal.
    assert probe.passes[2].sqnr_db == pytest.approx(0, abs=1e-4)
    assert probe.kept is not None and probe.kept.parent.name == "02-wrong"
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["02-wrong"]


@pytest.mark.parametrize(("name", "breaks"), [("fold_factors", True), ("quantize_weights", False)])
def test_a_pass_that_does_not_round_may_lose_nothing(name: str, breaks: bool, tmp_path: Path) -> None:
    """2 % of one weight is 34 dB: within the bound, but no pass that folds may do that."""
    probe = probed(tmp_path, [named(name, Scale("fc1", 1.02))])
    assert bool(probe.passes[0].why) is breaks
    assert probe.passes[0].sqnr_db == pytest.approx(-20 * np.log10(0.02), abs=0.01)


@pytest.mark.parametrize(
    ("bound", "breaks"),
    [(Bound(min_sqnr=40), True), (Bound(min_sqnr=30), False), (Bound(max_error=1e-3), True), (Bound(max_kl=1e-12), True),
     (Bound(max_kl=10.0), False)],
)  # fmt: skip
def test_bounds(bound: Bound, breaks: bool, tmp_path: Path) -> None:
    probe = probed(tmp_path, [named("quantize_weights", Scale("fc1", 1.02))], bound)
    assert bool(probe.passes[0].why) is breaks


def test_a_model_that_does_not_run_is_noted(tmp_path: Path) -> None:
    probe = probed(tmp_path, [named("same", Scale("fc1", 1.0)), named("broken", Drop())])
    assert "does not run" in probe.passes[1].note and not probe.passes[1].why


def test_a_compile(tmp_path: Path) -> None:
    path = models.deep_decoder(tmp_path)
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("bits: 8\nrules:\n- match: {name: wo1}\n  bits: 2\n  group_size: 64\n")
    found = bisect_passes(path, recipe, Bound(), QUICK)
    measured = {each.name: each.sqnr_db for each in found.passes if each.modified}
    assert {"quantize_weights", "lower_to_matmul_nbits"} <= measured.keys()
    assert found.layers is not None and found.layers.noisiest[0].layer.layers == ("wo1",)
    assert sorted(tmp_path.iterdir()) == [recipe, path]  # nothing else is left


def test_a_bound_on_kl_needs_classes(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no output that holds classes"):
        probed_without_classes(tmp_path)


def probed_without_classes(folder: Path) -> None:
    path = models.nothing_to_quantize(folder)
    with open_tapped(path) as reference:
        ParityProbe(reference, [], Bound(max_kl=1.0), folder)
