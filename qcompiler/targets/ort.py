"""Target `ort`: stock ONNX Runtime operators, checked in the model that ONNX Runtime really runs.

Weights become com.microsoft::MatMulNBits and GatherBlockQuantized, those of a codebook MatMulBnb4. After saving, the model is loaded
once, the graph that ONNX Runtime's optimizer left is read back, and each quantized node must be in it.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort

from qcompiler.errors import PromiseError, ResourceError
from qcompiler.graph.disk import require_free, writing
from qcompiler.graph.kernel_node import BLOCK_SIZES
from qcompiler.graph.model_file import files_of
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.graph.sparse_matmul import OP
from qcompiler.pass_manager import NamedPass
from qcompiler.passes.fuse_bias import FuseBias
from qcompiler.passes.lower_to_matmul_bnb4 import LowerToMatMulBnb4
from qcompiler.passes.lower_to_matmul_bnb4 import stays_plain as codebook_stays_plain
from qcompiler.passes.lower_to_matmul_nbits import LowerToMatMulNBits
from qcompiler.passes.lower_with_offsets import LowerWithOffsets, stays_plain
from qcompiler.quant.scheme import QuantScheme
from qcompiler.recipe.recipe import Recipe


def supports(scheme: QuantScheme) -> str | None:
    """None, or what MatMulNBits (MatMulBnb4 for a codebook) does not take."""
    if scheme.group_size is not None and scheme.group_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        if scheme.is_codebook:
            return f"group_size {scheme.group_size}: MatMulBnb4 has no such blocks; use one of {sizes}"
        return f"group_size {scheme.group_size}: MatMulNBits has no such blocks; use one of {sizes}, channel, tensor"
    return None


def remark(scheme: QuantScheme, gathered: bool, outliers: bool) -> list[str]:
    """Why a weight is stored, but read by no kernel of its own; a part of low rank is two stock MatMuls.

    Args:
        gathered: rows of the weight are looked up.
        outliers: some stand beside it.
    """
    plain = None
    if scheme.groups_rows:
        plain = (
            f"{scheme.label}: no kernel reads groups of rows; stored as plain ONNX, which ONNX Runtime unpacks in every run; "
            "set group_axis: input for one"
        )
    elif scheme.is_codebook:
        plain = codebook_stays_plain(scheme.dtype, gathered)
    elif scheme.has_float_zero_points or scheme.two_level:
        plain = stays_plain(scheme, gathered)
    sparse = f"outliers are added by {OP}, an operator of ours that runs as plain ONNX nodes: there is no stock kernel for it"
    return [line for line in (plain, sparse if outliers else None) if line is not None]


def lowering(recipe: Recipe) -> list[NamedPass]:
    """Passes from the middle form."""
    return [
        NamedPass(
            "lower_to_matmul_nbits",
            LowerToMatMulNBits(recipe.accuracy_level),
            "ORT's own fusion of DequantizeLinear fixes accuracy_level 4, so the nodes are written by us",
        ),
        NamedPass(
            "lower_to_matmul_bnb4",
            LowerToMatMulBnb4(),
            "beside it: each takes the middle forms that its kernel reads",
        ),
        NamedPass(
            "lower_with_offsets",
            LowerWithOffsets(recipe.accuracy_level),
            "beside them: weights with float zero points or two-level scales, whose zero points no kernel takes fast",
        ),
        NamedPass(
            "fuse_bias", FuseBias(), "after lowering: the kernel adds a bias while its output is in registers"
        ),
    ]


def verify(model: Path, passes: list[NamedPass]) -> dict[str, int]:
    """Count what runs as MatMulNBits, MatMulBnb4 and GatherBlockQuantized after ONNX Runtime's optimizer.

    Raises:
        PromiseError: ONNX Runtime cannot load the model, or a quantized node is not there.
        ResourceError: the disk has no room for a second copy of the model, which goes at once.
    """
    expected = [
        node
        for entry in passes
        if isinstance(entry.run, (LowerToMatMulNBits, LowerToMatMulBnb4, LowerWithOffsets))
        for node in entry.run.lowered
    ]
    running = _optimized_nodes(model)
    names = {node.name: node.op_type for node in running}
    readers = Counter((node.op_type, name) for node in running for name in set(node.input))
    wanted = Counter((node.op_type, node.packed) for node in expected)
    # By name, or, where ONNX Runtime inlined a branch and renamed its nodes, by the packed weight that is read.
    lost = [
        node
        for node in expected
        if names.get(node.name) != node.op_type
        and readers[node.op_type, node.packed] < wanted[node.op_type, node.packed]
    ]
    if lost:
        raise PromiseError(
            f"{lost[0].name}: should run as {lost[0].op_type}, but ONNX Runtime runs {names.get(lost[0].name, 'no node of that name')}"
            + (f" (and {len(lost) - 1} more)" if len(lost) > 1 else "")
        )
    return dict(Counter(node.op_type for node in expected))


def _optimized_nodes(model: Path) -> list[onnx.NodeProto]:
    """The nodes of the optimized model, control-flow bodies included."""
    # Beside the model: the optimized copy has its weights too, and the system's temporary folder may be memory.
    require_free(model.parent, sum(file.stat().st_size for file in files_of(model).values()))
    with writing(model.parent):
        folder = Path(tempfile.mkdtemp(prefix=".verify-", dir=model.parent))
    try:
        try:
            _load(model, folder / "optimized.onnx")
        except SESSION_ERRORS as error:
            raise _refusal(model, error) from error
        optimized = onnx.load(folder / "optimized.onnx", load_external_data=False)
    finally:
        shutil.rmtree(folder)
    return list(_nodes(optimized.graph))


def _load(model: Path, optimized: Path | None) -> None:
    """A session on the model, which saves its optimized form if a place is given."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
    # A packed copy of every weight, for nothing here.
    options.add_session_config_entry("session.disable_prepacking", "1")
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _refusal(model: Path, error: Exception) -> PromiseError | ResourceError:
    """ONNX Runtime says alike that a model is bad and that the disk is full: it is the disk if the model loads unsaved."""
    reason = str(error).splitlines()[0]
    try:
        _load(model, None)
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
