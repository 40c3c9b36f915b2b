"""Put the model's activations into a basis without outliers, by rotating its weights (QuaRot, Ashkboos et al. 2024, R1 and R2).

*Given* a model whose linears are MatMul (see ``expand_gemm``), before any weight is quantized.
*Result* the same function. Each residual stream h is h R instead: what writes to it (linears, their biases, tables) is turned by R, what
reads it (linears, the head) turned back, after the norms' weights went into those readers. The values of each attention head are turned
likewise between the linear that projects them and the one that reads them. Which streams and heads there are, and that they commute with a
rotation, is found by running pieces of the graph (see ``graph.stream``, ``graph.heads``); what is left alone is said with its reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.feeds import example_feed
from qcompiler.errors import ResumeError
from qcompiler.graph.census import product_names, take_census
from qcompiler.graph.checkpoints import Checkpoints
from qcompiler.graph.edits import Names, add_initializer, drop_unused, replace_value, set_info
from qcompiler.graph.heads import Heads, find_heads
from qcompiler.graph.left_alone import LeftAlone, lines
from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.region_run import constant_array
from qcompiler.graph.regions import find_regions
from qcompiler.graph.shape_inference import activation_types
from qcompiler.graph.stream import NormWeight, Place, Stream, find_stream
from qcompiler.graph.turn_weight import WeightTurn, bias_of, turn_weight
from qcompiler.graph.weight_store import WeightStore
from qcompiler.graph.weights import Role, Weight
from qcompiler.quant.rotation import Rotation
from qcompiler.recipe.plan import Plan, SkippedProduct
from qcompiler.recipe.transform import TransformSettings

ROTATED_KEY = "qcompiler.rotated"
"""Metadata of a model: what of it was rotated; it is not rotated again."""
_WHAT = {"stream": "residual streams", "heads": "heads of attention"}
TOKENS = 6  # rows that the pieces are run on: enough for attention to mix
PART = "rotate"

Progress = Callable[[str, int, int], None]
Floats = npt.NDArray[np.float32]


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
            edit = _Edit(model, self._plan)
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


class _Edit:
    """Everything that is to change, gathered first and then applied."""

    def __init__(self, model: ir.Model, plan: Plan) -> None:
        self._model = model
        self._names = Names(model)
        self._planned = {planned.weight.source: planned for planned in plan.quantized}
        self._shifts: list[tuple[Place, Rotation]] = []
        self._norms: list[tuple[NormWeight, Rotation]] = []
        self._exits: list[tuple[int, Rotation]] = []  # by their place among the model's outputs
        self._ones: dict[tuple[ir.DataType, int, int], ir.Value] = {}
        self._rotated: dict[tuple[ir.Value, int], ir.Value] = {}
        self.turns: dict[Weight, WeightTurn] = {}
        self.products: list[SkippedProduct] = []

    def take_stream(self, stream: Stream) -> None:
        """Writers, readers and constants of a stream."""
        for product in stream.writers:
            turn = self.turns.setdefault(product.weight, WeightTurn())
            if product.use.role is Role.EMBEDDING:
                turn.columns = stream.rotation
            else:
                turn.rows = stream.rotation
            self._note(product.weight, f"writes to a stream turned by {stream.rotation.what}")
        for product in stream.readers:
            self.turns.setdefault(product.weight, WeightTurn()).columns = stream.rotation
            self._note(product.weight, f"reads a stream turned by {stream.rotation.what}")
        for norm in stream.norms:
            self._norms.append((norm, stream.rotation))
            for product in norm.readers:
                self.turns[product.weight].fold = norm.value
        self._shifts += [(place, stream.rotation) for place in stream.shifts]
        outputs = self._model.graph.outputs
        self._exits += [(i, stream.rotation) for i, value in enumerate(outputs) if value in stream.exits]

    def take_heads(self, heads: Heads) -> None:
        """The linears before and behind attention."""
        self.turns.setdefault(heads.writer.weight, WeightTurn()).rows = heads.rotation
        self._note(heads.writer.weight, f"its heads of {heads.rotation.size} are turned")
        for product in heads.readers:
            self.turns.setdefault(product.weight, WeightTurn()).columns = heads.rotation
            self._note(product.weight, f"reads heads of {heads.rotation.size} that are turned")
        self._shifts += [(place, heads.rotation) for place in heads.shifts]

    def apply(self, tensors: dict[Weight, MappedTensor]) -> None:
        """Change the graph; ``tensors`` are the weights in their new bases."""
        biases = [
            (product.node, bias_of(product.weight, norm.offset, self.turns[product.weight].rows))
            for norm, _ in self._norms
            for product in norm.readers
            if norm.offset is not None
        ]  # of the weights as they were
        for weight, tensor in tensors.items():
            weight.source.const_value = tensor
        for place, rotation in self._shifts:
            self._shift(place, rotation)
        for norm, rotation in self._norms:
            if norm.readers:
                self._unite(norm.place, norm.offsets)
            else:
                self._make_product(norm, rotation)
        for node, bias in biases:
            self._add_bias(node, bias)
        for index, rotation in self._exits:
            self._turn_back(index, rotation)

    def _note(self, weight: Weight, text: str) -> None:
        planned = self._planned.get(weight.source)
        if planned is not None and f"rotated: {text}" not in planned.notes:
            planned.notes.append(f"rotated: {text}")

    def _shift(self, place: Place, rotation: Rotation) -> None:
        """A constant in the new basis; readers of one constant that turn alike share the new one."""
        node, index = place
        old = node.inputs[index]
        assert old is not None
        fresh = self._rotated.get((old, id(rotation)))
        if fresh is None:
            array = constant_array(self._model, old)
            fresh = self._constant(rotation.apply(array).astype(array.dtype), f"{old.name}.rotated")
            self._rotated[old, id(rotation)] = fresh
        node.replace_input_with(index, fresh)
        drop_unused(old)

    def _unite(self, place: Place, offsets: Sequence[Place]) -> None:
        """Ones for the weight and zeros for what is added behind it: the readers have them now."""
        for (node, index), number in [(place, 1), *((other, 0) for other in offsets)]:
            old = node.inputs[index]
            assert old is not None
            array = constant_array(self._model, old)
            dtype = ir.DataType.from_numpy(array.dtype)
            key = dtype, array.size, number
            if key not in self._ones:
                kind = "ones" if number else "zeros"
                self._ones[key] = self._constant(np.full(array.size, number, array.dtype), f"rotate.{kind}")
            node.replace_input_with(index, self._ones[key])
            drop_unused(old)

    def _make_product(self, norm: NormWeight, rotation: Rotation) -> None:
        """R^T diag(w) R in place of the weight w, and what the norm adds behind it in the new basis."""
        node, index = norm.place
        output, old = node.outputs[0], node.inputs[index]
        assert old is not None and node.graph is not None
        dtype = output.dtype or ir.DataType.FLOAT
        matrix = rotation.apply((norm.value[:, None] * rotation.matrix()).T).T
        operand = self._constant(np.ascontiguousarray(matrix).astype(dtype.numpy()), f"{old.name}.rotated")
        name = self._names.node(f"{node.name}.rotation")
        alone = node.op_type in (
            "Mul",
            "Div",
        )  # does nothing but multiply; a norm stays, with ones for its weight
        source = node.inputs[1 - index] if alone else output
        product = ir.node("MatMul", [source, operand], name=name)
        made = [product]
        if norm.offset is not None:
            shift = self._constant(
                rotation.apply(norm.offset).astype(dtype.numpy()), f"{old.name}.rotated_offset"
            )
            made.append(
                ir.node("Add", [product.outputs[0], shift], name=self._names.node(f"{node.name}.offset"))
            )
        for each in made:
            each.outputs[0].name = self._names.value(each.name or "")
            set_info(each.outputs[0], dtype, output.shape)
        node.graph.insert_after(node, made)
        replace_value(output, made[-1].outputs[0], keep=made)
        if alone:
            drop_unused(output)
        else:
            self._unite(norm.place, norm.offsets)
        self._tell_product(
            product, f"{old.name} in the rotated basis, for the linears behind it cannot take it"
        )

    def _turn_back(self, index: int, rotation: Rotation) -> None:
        """A product with R^T before an output of the model, which stays what it was."""
        outputs = self._model.graph.outputs
        turned = outputs[index]
        name, dtype = turned.name, turned.dtype or ir.DataType.FLOAT
        operand = self._constant(
            np.ascontiguousarray(rotation.matrix().T).astype(dtype.numpy()), f"{name}.turned_back"
        )
        product = ir.node("MatMul", [turned, operand], name=self._names.node(f"{name}.turned_back"))
        set_info(product.outputs[0], dtype, turned.shape)
        self._model.graph.append(product)
        outputs[index] = product.outputs[0]
        turned.name, product.outputs[0].name = self._names.value(f"{name}.rotated"), name
        self._tell_product(product, f"the output {name} in its own basis")

    def _tell_product(self, product: ir.Node, what: str) -> None:
        operand = product.inputs[1]
        assert operand is not None and operand.const_value is not None
        known, _ = product_names(product, operand)  # as inspect will find it
        shape, size = tuple(operand.const_value.shape.numpy()), int(operand.const_value.nbytes)
        self.products.append(
            SkippedProduct(known, Role.LINEAR, "MatMul", shape, f"made by rotate: {what}", size)
        )

    def _add_bias(self, node: ir.Node, bias: Floats) -> None:
        """Adds to the bias behind a linear, or makes it one."""
        output = node.outputs[0]
        dtype = output.dtype or ir.DataType.FLOAT
        users = list(output.consumers())
        if len(users) == 1 and users[0].op_type == "Add" and not output.is_graph_output():
            index = 1 - next(i for i, value in enumerate(users[0].inputs) if value is output)
            old = users[0].inputs[index]
            if (
                old is not None
                and old.is_initializer()
                and old.shape is not None
                and list(old.shape) == list(bias.shape)
            ):
                total = constant_array(self._model, old).astype(np.float32) + bias
                fresh = self._constant(total.astype(dtype.numpy()), f"{old.name}.with_offset")
                users[0].replace_input_with(index, fresh)
                drop_unused(old)
                return
        assert node.graph is not None
        operand = self._constant(bias.astype(dtype.numpy()), f"{output.name}.offset")
        total_node = ir.node("Add", [output, operand], name=self._names.node(f"{node.name}.offset"))
        total_node.outputs[0].name = self._names.value(f"{output.name}.with_offset")
        set_info(total_node.outputs[0], dtype, output.shape)
        node.graph.insert_after(node, total_node)
        replace_value(output, total_node.outputs[0], keep=[total_node])

    def _constant(self, array: npt.NDArray[np.generic], base: str) -> ir.Value:
        name = self._names.value(base)
        dtype = ir.DataType.from_numpy(array.dtype)
        return add_initializer(self._model.graph, ir.Tensor(array, dtype=dtype, name=name), name)


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
