"""The first value at which two ways to run a model part.

ONNX Runtime's optimizer keeps the names of most values. What it leaves is written to a file, and values that the model has too are made
outputs of both: of the model as it is, with no optimization, and of the optimized file, which is not optimized again, so that the same
kernels run. Values are compared in the order of the model's graph.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.quant.similarity import Similarity
from qcompiler.report.session_variant import REFERENCE, SessionVariant, run

Array = npt.NDArray[Any]
AT_ONCE = 64 << 20  # bytes of values that are held of each, about
_MASK = 1e18
FLOATS_AGREE = 150.0  # dB; float32 holds no more
_FOLDER = "session.model_external_initializers_file_folder_path"
_NO_TENSORS = (
    "Sequence",
    "Optional",
    "If",
    "Loop",
    "Scan",
    "ConcatFromSequence",
    "SplitToSequence",
    "StringSplit",
)


@dataclass(frozen=True)
class Step:
    """One node where two runs come apart.

    Attributes:
        value: what it makes; node, op: in the model, runs_as: the operator that makes it in the optimized graph.
        sqnr_db: of the value; max_error: largest difference.
        before_db: least SQNR of the values that it is computed from, as far as both runs have them; infinite where these are equal.
    """

    value: str
    node: str
    op: str
    runs_as: str
    sqnr_db: float
    max_error: float
    before_db: float


@dataclass(frozen=True)
class Parting:
    """Where two runs part.

    Attributes:
        first: the first node whose value differs by more than the bound.
        steepest: of the nodes up to there the one that adds most, which is often the cause; may be the same.
    """

    first: Step
    steepest: Step


def find_parting(
    model: Path,
    variant: SessionVariant,
    feed: Mapping[str, Array],
    bound_db: float,
    reference: SessionVariant = REFERENCE,
) -> Parting | str:
    """The first value whose SQNR is below ``bound_db``, or a line on why none was found."""
    proto = onnx.load(model, load_external_data=False)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as temporary:
        place = Path(temporary, "optimized.onnx")
        try:
            variant.open(model, optimized=place)
            optimized = onnx.load(place, load_external_data=False)
        except SESSION_ERRORS:
            return "its optimized graph cannot be written"
        makers = {name: node for node in optimized.graph.node for name in node.output if name}
        shared = [
            (node, name)
            for node in proto.graph.node
            for name in node.output
            if name in makers and not node.op_type.startswith(_NO_TENSORS) and _is_tensor(makers[name])
        ]
        if not shared:
            return "the optimized graph has no value of the model's"
        plain = _Tapped(proto, model.absolute().parent, reference)
        fused = _Tapped(
            optimized,
            Path(temporary),
            SessionVariant("disabled", variant.threads, variant.provider, variant.library),
        )
        distances = _Distances(proto)
        steepest: Step | None = None
        try:
            for node, name, wanted, got in _compared(plain, fused, shared, feed):
                similarity = _similarity(wanted, got)
                if similarity is None:
                    continue
                before, after = distances.before(node), similarity.sqnr_db
                distances.add(name, after)
                step = Step(
                    name, node.name, node.op_type, makers[name].op_type, after, max_error(wanted, got), before
                )
                if steepest is None or _height(step) > _height(steepest):
                    steepest = step
                if not after >= bound_db:
                    return Parting(step, steepest)
        except SESSION_ERRORS as error:
            return f"its values cannot be read ({' '.join(str(error).split())[:120]})"
    return "no value inside the graph that both have differs by as much"


def _height(step: Step) -> float:
    """Decibels that a node loses."""
    return min(step.before_db, FLOATS_AGREE) - min(step.sqnr_db, FLOATS_AGREE)


def max_error(wanted: Array, got: Array) -> float:
    """Largest difference; infinity where one is not a number and the other is."""
    if not wanted.size:
        return 0.0
    r, a = wanted.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where((r == a) | (np.isnan(r) & np.isnan(a)), 0.0, np.abs(r - a))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max())


def _is_tensor(node: onnx.NodeProto) -> bool:
    return not node.op_type.startswith(_NO_TENSORS)


def _similarity(wanted: Array, got: Array) -> Similarity | None:
    """None for what cannot be compared: other shapes (a layout of ONNX Runtime's own), texts."""
    if wanted.shape != got.shape or wanted.dtype.kind not in "fiub" or got.dtype.kind not in "fiub":
        return None
    found = Similarity()
    masked = (wanted == got) & (
        np.abs(wanted.astype(np.float64)) > _MASK
    )  # a mask's numbers would drown all others
    found.add(wanted[~masked], got[~masked])
    return found


class _Tapped:
    """A graph some of whose values can be read."""

    def __init__(self, proto: onnx.ModelProto, folder: Path, variant: SessionVariant) -> None:
        self._proto = proto
        self._folder = folder
        self._variant = variant

    def values(self, names: Sequence[str], feed: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays of these."""
        return self._run(feed, names)

    def sizes(self, names: Sequence[str], feed: Mapping[str, Array]) -> dict[str, int]:
        """How many bytes these take, at 4 a number."""
        shapes = {f"qcompiler.shape.{index}": name for index, name in enumerate(names)}
        nodes = [onnx.helper.make_node("Shape", [name], [shape]) for shape, name in shapes.items()]
        found = self._run(feed, list(shapes), nodes)
        return {shapes[shape]: 4 * math.prod(array.tolist()) for shape, array in found.items()}

    def _run(
        self, feed: Mapping[str, Array], names: Sequence[str], nodes: Sequence[onnx.NodeProto] = ()
    ) -> dict[str, Array]:
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        proto.graph.node.extend(nodes)
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        session = self._variant.open(proto.SerializeToString(), entries={_FOLDER: str(self._folder)})
        return run(session, feed)


def _compared(
    plain: _Tapped, fused: _Tapped, shared: Sequence[tuple[onnx.NodeProto, str]], feed: Mapping[str, Array]
) -> Iterator[tuple[onnx.NodeProto, str, Array, Array]]:
    sizes = plain.sizes([name for _, name in shared], feed)
    chunk: list[tuple[onnx.NodeProto, str]] = []
    held = 0
    for index, (node, name) in enumerate(shared):
        chunk.append((node, name))
        held += sizes[name]
        if held < AT_ONCE and index + 1 < len(shared):
            continue
        names = [each for _, each in chunk]
        wanted, got = plain.values(names, feed), fused.values(names, feed)
        yield from ((maker, each, wanted[each], got[each]) for maker, each in chunk)
        chunk, held = [], 0


class _Distances:
    """SQNR of the values seen so far."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._makers = {name: node for node in proto.graph.node for name in node.output if name}
        self._known: dict[str, float] = {}

    def add(self, name: str, sqnr_db: float) -> None:
        """Of one more value."""
        self._known[name] = sqnr_db

    def before(self, node: onnx.NodeProto) -> float:
        """The least among the nearest known values that ``node`` is computed from; infinite where there are none."""
        found: list[float] = []
        stack, seen = list(node.input), set(node.input)
        while stack:
            name = stack.pop()
            if name in self._known:
                found.append(self._known[name])
            elif name in self._makers:
                fresh = [source for source in self._makers[name].input if source not in seen]
                seen.update(fresh)
                stack += fresh
        return min(found, default=math.inf)
