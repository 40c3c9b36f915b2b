"""Sessions and the operator library in a real ONNX Runtime; a model needs nothing of the compiler here."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import qcompiler
from qcompiler import runtime
from qcompiler.errors import InputError, ResourceError

DOMAIN = "ai.qcompiler"


def write_model(folder: Path, *, domain: str = "", with_body: bool = False) -> Path:
    """Twice(x) = x + x, as ONNX's Add or as an operator of ours that no library has."""
    value_info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    node = helper.make_node("Add", ["x", "x"], ["y"])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    body = helper.make_function(DOMAIN, "Twice", ["x"], ["y"], [node], opsets[:1])
    if domain:
        node = helper.make_node("Twice", ["x"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", value_info[:1], value_info[1:])
    model = helper.make_model(
        graph, functions=[body] if with_body else [], opset_imports=opsets, ir_version=10
    )
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def twice(session: ort.InferenceSession) -> list[float]:
    return session.run(None, {"x": np.array([1.5, -2], dtype=np.float32)})[0].tolist()


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where the package was put on the path without being built."""
    monkeypatch.setattr(runtime, "_library_file", lambda: tmp_path / "lib" / "libqcompiler_ops.so")


def test_session_on_a_stock_model(tmp_path: Path) -> None:
    session = qcompiler.create_session(write_model(tmp_path))
    assert type(session) is ort.InferenceSession
    assert twice(session) == [3.0, -4.0]


def test_session_on_a_model_with_function_bodies(tmp_path: Path) -> None:
    session = qcompiler.create_session(write_model(tmp_path, domain=DOMAIN, with_body=True))
    assert twice(session) == [3.0, -4.0]


def test_model_with_function_bodies_runs_without_the_library(tmp_path: Path, without_library: None) -> None:
    session = qcompiler.create_session(str(write_model(tmp_path, domain=DOMAIN, with_body=True)))
    assert twice(session) == [3.0, -4.0]


def test_one_library_serves_many_sessions(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    sessions = [qcompiler.create_session(path, ["CPUExecutionProvider"]) for _ in range(3)]
    assert [twice(session) for session in sessions] == [[3.0, -4.0]] * 3


def test_given_options_are_used_as_they_are(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    qcompiler.register(options)
    for _ in range(2):  # one options object, registered once, may make many sessions
        session = qcompiler.create_session(write_model(tmp_path), session_options=options)
        assert session.get_session_options().intra_op_num_threads == 1


def test_registering_twice_is_once(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    for _ in range(2):
        qcompiler.register(options)
    assert twice(qcompiler.create_session(write_model(tmp_path), session_options=options)) == [3.0, -4.0]


def test_registering_twice_past_us_is_explained(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(qcompiler.library_path()))
    qcompiler.register(options)
    with pytest.raises(InputError, match="one domain twice; call qcompiler.register instead"):
        qcompiler.create_session(write_model(tmp_path), session_options=options)


def test_registering_on_something_else_is_named() -> None:
    with pytest.raises(TypeError, match=r"expected onnxruntime\.SessionOptions, got str"):
        qcompiler.register("model.onnx")  # type: ignore[arg-type]


def test_a_folder_stands_for_its_model(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert twice(qcompiler.create_session(tmp_path)) == [3.0, -4.0]


def test_default_providers_end_with_the_cpu(tmp_path: Path) -> None:
    assert qcompiler.create_session(write_model(tmp_path)).get_providers()[-1] == "CPUExecutionProvider"


def test_unknown_operator_of_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ResourceError, match=r"model\.onnx: needs operators of ai\.qcompiler .*register.*Twice"
    ):
        qcompiler.create_session(write_model(tmp_path, domain=DOMAIN))


def test_absent_library_is_named_when_the_model_needs_it(tmp_path: Path, without_library: None) -> None:
    with pytest.raises(ResourceError, match=r"lacks libqcompiler_ops\.so.*Twice"):
        qcompiler.create_session(write_model(tmp_path, domain=DOMAIN))


def test_register_and_library_path_refuse_without_library(without_library: None) -> None:
    with pytest.raises(ResourceError, match=r"libqcompiler_ops\.so is missing"):
        qcompiler.library_path()
    with pytest.raises(ResourceError, match=r"libqcompiler_ops\.so is missing"):
        qcompiler.register(ort.SessionOptions())


def test_unknown_operator_of_others_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ONNX Runtime cannot load it: .*com\.example"):
        qcompiler.create_session(write_model(tmp_path, domain="com.example"))


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_broken_file_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime cannot load it") as caught:
        qcompiler.create_session(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        qcompiler.create_session(tmp_path / "absent.onnx")


def test_missing_onnxruntime_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what makes `import onnxruntime` fail
    with pytest.raises(ResourceError, match="pip install onnxruntime, or onnxruntime-gpu"):
        qcompiler.create_session(write_model(tmp_path))


def test_package_loads_names_when_used() -> None:
    assert {"compile", "Recipe", "create_session"} <= set(dir(qcompiler))
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        _ = qcompiler.compil


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = """
        import sys, qcompiler, qcompiler.runtime
        qcompiler.library_path()
        loaded = {"numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "click"} & set(sys.modules)
        sys.exit(f"loaded too early: {loaded}" if loaded else 0)
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_passes_refuse_to_be_imported_under_another_name() -> None:
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", "import passes"], cwd=root, capture_output=True, text=True)
    assert result.returncode == 1
    assert "import qcompiler.passes instead" in result.stderr
