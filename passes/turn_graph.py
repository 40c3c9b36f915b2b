"""Edit a graph so that its streams and heads are in other bases: the part of ``rotate`` that knows nodes.

Streams and heads are taken in first; nothing is edited before ``apply``, which gets the weights in their new bases. What a norm multiplies
with becomes ones where the readers have taken it, an explicit product where they cannot; constants that are added are turned.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, drop_unused, replace_value, set_info
from qcompiler.graph.heads import Heads
from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.product_names import product_names
from qcompiler.graph.region_run import constant_array
from qcompiler.graph.stream import NormWeight, Place, Stream
from qcompiler.graph.turn_weight import WeightTurn, bias_of
from qcompiler.graph.weights import Role, Weight
from qcompiler.quant.rotation import Rotation
from qcompiler.recipe.plan import Plan, SkippedProduct

Floats = npt.NDArray[np.float32]


class TurnGraph:
    """Everything that is to change, gathered first and then applied.

    Attributes:
        turns: what becomes of each stored weight; its numbers are for the caller to make.
        products: explicit products that were added.
    """

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
