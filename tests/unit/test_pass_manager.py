"""run_passes and its instruments: order, stopping, and a pass that breaks the model is named."""

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from qcompiler.errors import InputError, PassError, RecipeError, ResourceError
from qcompiler.pass_manager import Dump, NamedPass, Verify, check_model, check_stop, run_passes, signature
from tests.small_models import make_model, weight


class Edit(ir.passes.InPlacePass):
    """Whatever a function does to the model; modified unless it returns False."""

    def __init__(self, edit: Callable[[ir.Model], object]) -> None:
        super().__init__()
        self._edit = edit

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, modified=self._edit(model) is not False)


def _model() -> ir.Model:
    return ir.from_proto(
        make_model(
            "g (float[M,32] x) => (float[M,32] y) { h = MatMul(x, w) y = Relu(h) }", {"w": weight(32, 32)}
        )
    )


def _pass(name: str, edit: Callable[[ir.Model], object] = lambda model: None) -> NamedPass:
    return NamedPass(name, Edit(edit), "for the test")


def test_passes_run_in_order_up_to_the_last_wanted() -> None:
    seen: list[str] = []
    passes = [_pass(name, lambda model, name=name: seen.append(name)) for name in ("one", "two", "three")]  # type: ignore[misc]
    records = run_passes(_model(), passes, [], stop_after="two")
    assert seen == ["one", "two"]
    assert [(record.name, record.modified) for record in records] == [("one", True), ("two", True)]


def test_what_a_pass_left_alone_is_in_its_record() -> None:
    told = Edit(lambda model: False)
    told.reasons = ["mul_1: not folded: it divides by 0"]  # type: ignore[attr-defined]  # as a pass that has some
    first, second = run_passes(_model(), [NamedPass("told", told, "for the test"), _pass("other")], [])
    assert first.reasons == ("mul_1: not folded: it divides by 0",) and second.reasons == ()


def test_an_unknown_last_pass_is_refused() -> None:
    check_stop(None, ["one"])
    check_stop("one", ["one"])
    with pytest.raises(RecipeError, match=r"--stop-after oen: no such pass; there are one, two"):
        check_stop("oen", ["one", "two"])


def _fail(error: Exception) -> Callable[[ir.Model], object]:
    def edit(model: ir.Model) -> object:
        raise error

    return edit


class ForeignError(Exception):
    """As a library's own, which knows no base but Exception."""


@pytest.mark.parametrize("error", [ValueError("v"), KeyError("k"), AssertionError("a"), ForeignError("f")])
def test_a_defect_is_named_by_its_pass(error: Exception) -> None:
    with pytest.raises(PassError, match=rf"^pass bad: failed: {type(error).__name__}") as caught:
        run_passes(_model(), [_pass("bad", _fail(error))], [])
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("error", [InputError("plain"), OSError("plain"), MemoryError("plain")])
def test_our_own_errors_and_the_machines_pass_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=r"^plain$"):
        run_passes(_model(), [_pass("bad", _fail(error))], [])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ImportError("libtorch.so: cannot open shared object file", name="torch._C"),
            r"torch\._C is installed, but cannot be imported \(libtorch\.so: .*\); install it again",
        ),
        (
            ModuleNotFoundError("No module named 'sympy'", name="sympy"),
            r"the package sympy is missing; pip install what provides it",
        ),
    ],
    ids=["broken", "missing"],
)
def test_a_package_that_does_not_load_is_no_defect_of_ours(error: ImportError, told: str) -> None:
    with pytest.raises(ResourceError, match=rf"^pass bad: {told}$"):
        run_passes(_model(), [_pass("bad", _fail(error))], [])


def test_inputs_of_unknown_rank_are_valid() -> None:
    """ONNX's checker refuses them, ONNX Runtime does not: no pass is to blame."""
    model = _model()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = None
    check_model(model, "one")


def test_verify_finds_a_changed_output() -> None:
    model = _model()
    with pytest.raises(PassError, match="pass rename: changed the model's inputs or outputs"):
        run_passes(
            model, [_pass("rename", lambda m: setattr(m.graph.outputs[0], "name", "other"))], [Verify(model)]
        )


def test_verify_finds_an_invalid_graph() -> None:
    model = _model()
    with pytest.raises(PassError, match="^pass order: left an invalid model"):
        run_passes(
            model,
            [_pass("order", lambda m: m.graph[1].replace_input_with(0, ir.Value(name="nowhere")))],
            [Verify(model)],
        )


def test_a_sound_model_passes() -> None:
    model = _model()
    run_passes(model, [_pass("nothing", lambda m: False)], [Verify(model)])
    check_model(model, "nothing")


def test_an_input_with_an_initializer_is_no_part_of_the_signature() -> None:
    model = _model()
    before = signature(model)
    model.graph.inputs.append(model.graph.initializers["w"])
    assert signature(model) == before == (("x", "FLOAT"), ("y", "FLOAT"))


def test_dump_saves_what_each_pass_left(tmp_path: Path) -> None:
    model = _model()
    passes = [
        _pass("one"),
        _pass("idle", lambda m: False),
        _pass("two", lambda m: m.metadata_props.update(a="b")),
    ]
    run_passes(model, passes, [Dump(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01-one", "03-two"]
    saved = onnx.load(tmp_path / "03-two" / "model.onnx")
    assert {entry.key: entry.value for entry in saved.metadata_props} == {"a": "b"}
