"""What ONNX Runtime really runs of a compiled model: the graph that its optimizer leaves is read back."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import onnx
import onnxruntime as ort

from qcompiler.errors import PromiseError, ResourceError
from qcompiler.graph.disk import require_free, writing
from qcompiler.graph.kernel_node import LoweredNode
from qcompiler.graph.model_file import files_of
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.pass_manager import NamedPass

Prepare = Callable[[ort.SessionOptions], None]
"""What is done with the options of a session before it is created."""


def verify_running(model: Path, passes: list[NamedPass], prepare: Prepare | None = None) -> dict[str, int]:
    """Count the nodes of each operator that passes promised (their ``lowered``) in the optimized model, and those of their ``hoped``.

    A hoped one that is not there is told by the pass (``left``).

    Raises:
        PromiseError: ONNX Runtime cannot load the model, or a quantized node is not there.
        ResourceError: the disk has no room for a second copy of the model, which goes at once.
    """
    # A node that a later pass handed on is the later one's.
    promised = {node.name: node for entry in passes for node in getattr(entry.run, "lowered", [])}
    expected = list(promised.values())
    running = _optimized_nodes(model, prepare)
    names = {node.name: _operator(node) for node in running}
    readers = Counter((_operator(node), name) for node in running for name in set(node.input))
    wanted = Counter((node.operator, node.packed) for node in expected)
    # By name, or, where ONNX Runtime inlined a branch and renamed its nodes, by the packed weight that is read.
    lost = [
        node
        for node in expected
        if names.get(node.name) != node.operator
        and readers[node.operator, node.packed] < wanted[node.operator, node.packed]
    ]
    if lost:
        raise PromiseError(
            f"{lost[0].name}: should run as {lost[0].operator}, but ONNX Runtime runs {names.get(lost[0].name, 'no node of that name')}"
            + (f" (and {len(lost) - 1} more)" if len(lost) > 1 else "")
        )
    counts = Counter(node.operator for node in expected)
    for entry in passes:
        choices: list[tuple[LoweredNode, ...]] = getattr(entry.run, "hoped", [])
        found = [next((one for one in each if readers[one.operator, one.packed]), None) for each in choices]
        counts.update(one.operator for one in found if one is not None)
        floats = [each[0].name for each, one in zip(choices, found, strict=True) if one is None]
        if floats:
            entry.run.left.append(  # type: ignore[attr-defined]  # goes with hoped
                f"{len(floats)} of {len(choices)} products with signed activations are computed in float by ONNX Runtime's CPU, "
                f"which takes them where a value has one reader, and of matrices where no bias follows: {', '.join(floats[:3])}"
                + (", .." if len(floats) > 3 else "")
            )
    return dict(counts)


def running_quantized(
    model: Path, ours: Collection[str], prepare: Prepare | None = None
) -> tuple[dict[str, int], list[str]]:
    """What becomes of products between QuantizeLinear and DequantizeLinear that a model came with: all but ``ours``, by name.

    Returns:
        How many run as each integer operator, and the names of those that multiply floats.

    Raises:
        PromiseError, ResourceError: as ``verify_running``.
    """
    nodes = list(_nodes(onnx.load(model, load_external_data=False).graph))
    codes = {node.output[0]: node.input[0] for node in nodes if node.op_type == "DequantizeLinear"}
    kept = [
        node
        for node in nodes
        if node.op_type in _PRODUCTS
        and node.domain == ""
        and codes.keys() >= set(node.input[:2])
        and node.name not in ours
    ]
    if not kept:
        return {}, []
    names: dict[str, str] = {}
    readers: dict[str, list[str]] = {}  # where ONNX Runtime renamed a node, by the codes that it reads
    for node in _optimized_nodes(model, prepare):
        if node.op_type in _INTEGER_FORMS and node.name not in ours:
            names[node.name] = node.op_type
            for value in set(node.input):
                readers.setdefault(value, []).append(node.op_type)
    running, floating = Counter[str](), []
    for node in kept:
        found = readers.get(codes[node.input[1]], [])
        form = names.get(node.name) or (found.pop() if found else None)
        if form is None:
            floating.append(node.name or node.output[0])
        else:
            running[form] += 1
    return dict(running), floating


_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_INTEGER_FORMS = frozenset({"MatMulIntegerToFloat", "MatMulNBits", "QGemm", "QLinearConv", "QLinearMatMul"})
"""What ONNX Runtime makes of them where what they read is rounded."""


def verify_loads(model: Path, how: str) -> None:
    """Create a session on the model as it is, with nothing registered; ``how`` tells that in the error.

    Raises:
        PromiseError: ONNX Runtime cannot load the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # the error says it
    # With packed weights, as an application has them: MatMulNBits judges the shape of its codes when it packs them.
    try:
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except SESSION_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise PromiseError(
            f"{model.name}: ONNX Runtime {ort.__version__} cannot load the compiled model {how}: {reason}"
        ) from error


def _operator(node: onnx.NodeProto) -> str:
    """As LoweredNode.operator has it."""
    return LoweredNode(node.name, node.op_type, "", node.domain).operator


def _optimized_nodes(model: Path, prepare: Prepare | None) -> list[onnx.NodeProto]:
    """The nodes of the optimized model, control-flow bodies included."""
    # Beside the model: the optimized copy has its weights too, and the system's temporary folder may be memory.
    require_free(model.parent, sum(file.stat().st_size for file in files_of(model).values()))
    with writing(model.parent):
        folder = Path(tempfile.mkdtemp(prefix=".verify-", dir=model.parent))
    try:
        try:
            _load(model, folder / "optimized.onnx", prepare)
        except SESSION_ERRORS as error:
            raise _refusal(model, error, prepare) from error
        optimized = onnx.load(folder / "optimized.onnx", load_external_data=False)
    finally:
        shutil.rmtree(folder)
    return list(_nodes(optimized.graph))


def _load(model: Path, optimized: Path | None, prepare: Prepare | None) -> None:
    """A session on the model, which saves its optimized form if a place is given."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if prepare is not None:
        prepare(options)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
    # A packed copy of every weight, for nothing here.
    options.add_session_config_entry("session.disable_prepacking", "1")
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _refusal(model: Path, error: Exception, prepare: Prepare | None) -> PromiseError | ResourceError:
    """ONNX Runtime says alike that a model is bad and that the disk is full: it is the disk if the model loads unsaved."""
    reason = str(error).splitlines()[0]
    try:
        _load(model, None, prepare)
    except SESSION_ERRORS:
        return PromiseError(
            f"{model.name}: ONNX Runtime {ort.__version__} cannot load the compiled model: {reason}"
        )
    return ResourceError(
        f"{model.parent}: ONNX Runtime cannot write its optimized copy of the model there; free space or choose another place with -o"
    )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(body)
