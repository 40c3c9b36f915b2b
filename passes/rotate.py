"""Put the model's activations into a basis without outliers, by rotating its weights (QuaRot, Ashkboos et al. 2024, R1 and R2).

*Given* a model whose linears are MatMul (see ``expand_gemm``), before any weight is quantized.
*Result* the same function. Each residual stream h is h R instead: what writes to it (linears, their biases, tables) is turned by R, what
reads it (linears, the head) turned back, after the norms' weights went into those readers. The values of each attention head are turned
likewise between the linear that projects them and the one that reads them. Which streams and heads there are, and that they commute with a
rotation, is found by running pieces of the graph (see ``graph.stream``, ``graph.heads``); what is left alone is said with its reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from qcompiler.calibration.feeds import example_feed
from qcompiler.errors import ResumeError
from qcompiler.graph.census import take_census
from qcompiler.graph.checkpoints import Checkpoints
from qcompiler.graph.heads import Heads, find_heads
from qcompiler.graph.left_alone import LeftAlone, lines
from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.regions import find_regions
from qcompiler.graph.shape_inference import activation_types
from qcompiler.graph.stream import Stream, find_stream
from qcompiler.graph.turn_weight import WeightTurn, turn_weight
from qcompiler.graph.weight_store import WeightStore
from qcompiler.graph.weights import Weight
from qcompiler.passes.turn_graph import TurnGraph
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.transform import TransformSettings

ROTATED_KEY = "qcompiler.rotated"
"""Metadata of a model: what of it was rotated; it is not rotated again."""
_WHAT = {"stream": "residual streams", "heads": "heads of attention"}
TOKENS = 6  # rows that the pieces are run on: enough for attention to mix
PART = "rotate"

Progress = Callable[[str, int, int], None]


@dataclass
class RotationResult:
    """What was rotated; plain values, for the report.

    Attributes:
        streams: one line for each residual stream.
        heads: linears whose heads were rotated.
        products: names of explicit products that were added where a norm's weight could not be folded.
        left_alone: what was not rotated, and why.
    """

    streams: list[str] = field(default_factory=list)
    heads: int = 0
    products: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)


class Rotate(ir.passes.InPlacePass):
    """The pass; ``result`` says what it did.

    Args:
        plan: gets notes for the weights, and a warning for what is left alone.
        store: takes the rotated weights.
        seed: of the rotations.
        checkpoints: over the same store; a run that goes on finds the rotated weights there.
    """

    def __init__(
        self,
        plan: Plan,
        settings: TransformSettings | None,
        seed: int,
        store: WeightStore,
        progress: Progress,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        super().__init__()
        self._plan = plan
        self._settings = settings
        self._seed = seed
        self._store = store
        self._progress = progress
        self._checkpoints = checkpoints
        self.result = RotationResult()

    @property
    def asked_for(self) -> bool:
        """Whether the recipe wants a rotation."""
        return self._settings is not None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self._settings is None:
            return ir.passes.PassResult(model, modified=False)
        done = model.metadata_props.get(ROTATED_KEY, "").split()
        streams, heads = self._find(model, self._settings, done)
        if streams or heads:
            edit = TurnGraph(model, self._plan)
            for stream in streams:
                edit.take_stream(stream)
                self.result.streams.append(_described(stream))
            for group in heads:
                edit.take_heads(group)
            self.result.heads = len(heads)
            edit.apply(self._turned(edit.turns))
            self.result.products = [product.name for product in edit.products]
            self._plan.skipped.extend(edit.products)
            found = [*done, *(["stream"] if streams else []), *(["heads"] if heads else [])]
            model.metadata_props[ROTATED_KEY] = " ".join(dict.fromkeys(found))
        self._plan.warnings.extend(f"not rotated: {line}" for line in self.result.left_alone)
        return ir.passes.PassResult(model, modified=bool(streams or heads))

    def _find(
        self, model: ir.Model, settings: TransformSettings, done: Sequence[str]
    ) -> tuple[list[Stream], list[Heads]]:
        """Everything that can be rotated; nothing is edited."""
        asked = [name for name, on in (("stream", settings.stream), ("heads", settings.heads)) if on]
        wanted = [name for name in asked if name not in done]
        self.result.left_alone += [
            f"{_WHAT[name]}: rotated by an earlier compile" for name in asked if name in done
        ]
        if not wanted:
            return [], []
        self._progress("looking for what can be rotated", 0, 1)
        feed = dict(example_feed(model, TOKENS))
        types = activation_types(model, {name: array.shape for name, array in feed.items()})
        regions = find_regions(model, take_census(model))
        streams: list[Stream] = []
        heads: list[Heads] = []
        refused: dict[str, list[LeftAlone]] = {"stream": [], "heads": []}
        for region in regions.regions:
            if "stream" in wanted:
                stream = find_stream(model, regions, region, feed, types, self._seed)
                if isinstance(stream, Stream):
                    streams.append(stream)
                elif stream is not None:
                    refused["stream"].append(stream)
            if "heads" in wanted:
                likely = heads[-1].rotation.size if heads else 0
                group = find_heads(model, regions, region, feed, types, self._seed, likely)
                if isinstance(group, Heads):
                    heads.append(group)
                elif group is not None:
                    refused["heads"].append(group)
        found = {"stream": len(streams), "heads": len(heads)}
        nothing = {
            "stream": "no residual stream: nothing sums what linears write for linears of that width to read",
            "heads": "no attention between two linears",
        }
        for name in wanted:
            if refused[name]:
                self.result.left_alone += lines(refused[name])
            elif not found[name]:
                self.result.left_alone.append(nothing[name])
        return streams, heads

    def _turned(self, turns: dict[Weight, WeightTurn]) -> dict[Weight, MappedTensor]:
        """The weights in their new bases, in the store: from an earlier run, or made now."""
        saved = None if self._checkpoints is None else self._checkpoints.take(PART)
        if saved is not None:
            return self._restored(list(turns), saved["weights"])
        tensors: dict[Weight, MappedTensor] = {}
        for weight, turn in turns.items():
            self._progress(f"rotating {weight.name}", len(tensors), len(turns))
            tensors[weight] = turn_weight(weight, turn, self._store)
        if self._checkpoints is not None:
            places = [[weight.source.name, tensor.offset] for weight, tensor in tensors.items()]
            self._checkpoints.add(PART, {"weights": places})
        return tensors

    def _restored(
        self, weights: Sequence[Weight], places: Sequence[list[str | int]]
    ) -> dict[Weight, MappedTensor]:
        if [weight.source.name for weight in weights] != [name for name, _ in places]:
            raise ResumeError("rotate: rotated other weights before; leave out --resume to begin anew")
        restored = {}
        for weight, (_, offset) in zip(weights, places, strict=True):
            tensor = weight.source.const_value
            assert tensor is not None
            shape = tensor.shape.numpy()
            restored[weight] = self._store.at(int(offset), tensor.dtype, shape, f"{tensor.name}")
        return restored


def _described(stream: Stream) -> str:
    rotation = stream.rotation
    folded = sum(bool(norm.readers) for norm in stream.norms)
    keeping = ", means kept" if rotation.keeps_ones else ""
    explicit = len(stream.norms) - folded + len(stream.exits)
    extra = f", {explicit} explicit products of {rotation.size} x {rotation.size}" if explicit else ""
    return (
        f"{rotation.size} channels ({rotation.what}{keeping}): written by {len(stream.writers)}, read by {len(stream.readers)}, "
        f"{folded} norms' weights folded{extra}"
    )
