"""Puts QuantizeLinear and DequantizeLinear into a graph, and makes what convolutions read beside their input integers."""

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.bodies import Bodies
from qcompiler.graph.convolution import bias_of
from qcompiler.graph.edits import Names, add_initializer, drop_unused, replace_value, set_info
from qcompiler.graph.quantized import stored
from qcompiler.graph.stored_quantized import StoredCodes
from qcompiler.graph.weights import constant_values
from qcompiler.quant.activation_codes import ActivationCodes
from qcompiler.quant.bias_codes import bias_codes, coarser_codes, scales_with_room
from qcompiler.recipe.planned_weight import PlannedWeight


class QdqEditor:
    """Edits one model; ``codes`` has every value that is rounded.

    Constants become initializers of the main graph. A value is rounded in the graph that it belongs to, and in each body that has a
    product which reads it a DequantizeLinear stands (``bring_inside``): ONNX Runtime's optimizer looks at one graph at a time.
    """

    def __init__(self, model: ir.Model, codes: Mapping[ir.Value, ActivationCodes]) -> None:
        self._graph = model.graph
        self._names = Names(model)
        self._bodies = Bodies(model)
        self._codes = codes
        self._scales: dict[ir.Value, np.float32] = {}  # of what DequantizeLinear makes
        self._inside: dict[tuple[ir.Value, ir.Graph], ir.Value] = {}  # what stands for such a value in a body

    def round_for(self, value: ir.Value, readers: Collection[ir.Node]) -> None:
        """Rounds a float value for some of its readers, in front of the first."""
        made, graph = self._pair(value, value), value.graph
        assert graph is not None
        order = {node: place for place, node in enumerate(graph)}
        first = min((self._bodies.node_in(graph, node) for node in readers), key=order.__getitem__)
        graph.insert_before(first, made)
        for node in readers:
            node.replace_input_with(0, made[-1].outputs[0])

    def round_value(self, value: ir.Value, relu: ir.Node | None) -> None:
        """Rounds a value for all its readers, in place of ``relu`` where one makes it."""
        source = value if relu is None else relu.inputs[0]
        assert source is not None
        made = self._pair(source, value)
        maker = source.producer()
        assert maker is not None and maker.graph is not None
        maker.graph.insert_after(maker, made)
        replace_value(value, made[-1].outputs[0], keep=(made[0],))
        if relu is not None:
            drop_unused(value)

    def bring_inside(self, node: ir.Node) -> None:
        """What a node of a body reads of a DequantizeLinear outside of it, one in the body makes of the same codes."""
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        for place, value in enumerate(node.inputs):
            outside = None if value is None else value.producer()
            if (
                value is None
                or outside is None
                or outside.op_type != "DequantizeLinear"
                or outside.graph is graph
            ):
                continue
            inside = self._inside.get((value, graph))
            if inside is None:
                inside = self._inside[value, graph] = self._again(outside, self._first_reader(value, graph))
            node.replace_input_with(place, inside)
            drop_unused(value)

    def _first_reader(self, value: ir.Value, graph: ir.Graph) -> ir.Node:
        readers = set(value.consumers())
        return next(node for node in graph if node in readers)

    def _again(self, dequantize: ir.Node, reader: ir.Node) -> ir.Value:
        """The output of a node like this one, in front of a reader."""
        value = dequantize.outputs[0]
        output = ir.Value(name=self._names.value(f"{value.name}.inside"), type=value.type, shape=value.shape)
        node = ir.node(
            "DequantizeLinear", dequantize.inputs, attributes=dequantize.attributes, outputs=[output],
            name=self._names.node(f"{dequantize.name}.inside"), metadata_props=dict(dequantize.metadata_props),
        )  # fmt: skip
        assert reader.graph is not None
        reader.graph.insert_before(reader, node)
        if value in self._scales:
            self._scales[output] = self._scales[value]
        return output

    def _pair(self, source: ir.Value, value: ir.Value) -> list[ir.Node]:
        form = self._codes[value]
        dtype = value.dtype or ir.DataType.FLOAT
        name = self._names.value(f"{value.name}.scale")
        steps = add_initializer(self._graph, ir.Tensor(np.array(form.scale), name=name), name)
        name = self._names.value(f"{value.name}.zero_point")
        point = add_initializer(self._graph, ir.Tensor(form.numpy_zero_point, name=name), name)
        codes = ir.Value(name=self._names.value(f"{value.name}.codes"))
        set_info(codes, ir.DataType.from_numpy(np.dtype(form.kind)), value.shape)
        back = ir.Value(name=self._names.value(f"{value.name}.rounded"))
        set_info(back, dtype, value.shape)
        self._scales[back] = form.scale
        return [
            ir.node(
                "QuantizeLinear",
                [source, steps, point],
                outputs=[codes],
                name=self._names.node(f"{value.name}.quantize"),
            ),
            ir.node(
                "DequantizeLinear",
                [codes, steps, point],
                outputs=[back],
                name=self._names.node(f"{value.name}.dequantize"),
            ),
        ]

    def codes_of(self, node: ir.Node) -> ir.Value:
        """The stored weight of a finished convolution."""
        codes = self._dequantize_of(node).inputs[0]
        assert codes is not None
        return codes

    def finish_convolution(self, node: ir.Node, planned: PlannedWeight) -> bool:
        """Its bias in integers, with room for it and those of all others; whether it runs in integers then."""
        x, dequantize = node.inputs[0], self._dequantize_of(node)
        if bias_of(node) is None:
            return True
        bias = constant_values(bias_of(node))
        if bias is None:
            planned.notes.append("stays float: its bias is computed")
            return False
        scale = dequantize.inputs[1]
        assert x is not None and scale is not None and scale.const_value is not None
        wide = scale.const_value.numpy().astype(np.float64)
        steps = np.broadcast_to(self._scales[x] * wide, bias.shape).astype(np.float32)
        self._store_bias(node, steps, bias_codes(bias.astype(np.float64), steps))
        return True

    def _dequantize_of(self, node: ir.Node) -> ir.Node:
        weight = node.inputs[1]
        dequantize = None if weight is None else weight.producer()
        assert dequantize is not None
        return dequantize

    def prepare_kernel(self, node: ir.Node, planned: PlannedWeight) -> None:
        """A convolution's weight in the shape of its kernel; several may share one."""
        maker = self._dequantize_of(node)
        assert planned.weight.kernel is not None
        if maker.op_type == "Reshape":  # else another use of the weight was here before
            self._shape_kernel(maker, planned.weight.kernel)

    def make_room(self, node: ir.Node) -> None:
        """For a convolution's bias, where its prepared kernel's scales are too small for it."""
        x, bias = node.inputs[0], constant_values(bias_of(node))
        if bias is not None and x is not None:
            self._room_for(bias.astype(np.float64), float(self._scales[x]), self._dequantize_of(node))

    def _room_for(self, bias: npt.NDArray[np.float64], x_scale: float, dequantize: ir.Node) -> None:
        """Widens those of the weight's scales that are so small that the bias does not fit into int32 in steps of both scales.

        What such an output's weights add to its bias is less than a hundredth of it, so coarser codes lose next to nothing.
        """
        codes, scale = dequantize.inputs[0], dequantize.inputs[1]
        assert codes is not None and scale is not None
        assert codes.const_value is not None and scale.const_value is not None
        scales = scale.const_value.numpy().astype(np.float64)
        wide = scales_with_room(bias, x_scale, scales)
        if (wide > scales).any():
            coarse = coarser_codes(codes.const_value.numpy(), scales, wide)
            codes.const_value = ir.Tensor(coarse, name=codes.name)
            scale.const_value = ir.Tensor(wide.astype(np.float32), name=scale.name)

    def _store_bias(
        self,
        node: ir.Node,
        steps: npt.NDArray[np.float32],
        codes: npt.NDArray[np.int32],
    ) -> None:
        old = node.inputs[2]
        assert old is not None
        name = self._names.value(f"{old.name}.codes")
        stored_codes = add_initializer(self._graph, ir.Tensor(np.ascontiguousarray(codes), name=name), name)
        name = self._names.value(f"{old.name}.scale")
        scale = add_initializer(self._graph, ir.Tensor(np.ascontiguousarray(steps), name=name), name)
        output = ir.Value(name=self._names.value(f"{old.name}.dequantized"))
        set_info(output, ir.DataType.FLOAT, ir.Shape(codes.shape))
        made = ir.node(
            "DequantizeLinear", [stored_codes, scale], attributes={"axis": 0}, outputs=[output],
            name=self._names.node(f"{old.name}.dequantize"),
        )  # fmt: skip
        assert node.graph is not None
        node.graph.insert_before(node, made)
        node.replace_input_with(2, output)
        drop_unused(old)

    def _shape_kernel(self, reshape: ir.Node, kernel: tuple[int, ...]) -> None:
        """The codes themselves in the kernel's shape, in place of the Reshape behind them."""
        flat, shaped = reshape.inputs[0], reshape.outputs[0]
        dequantize = None if flat is None else flat.producer()
        assert flat is not None and dequantize is not None
        codes, kept = dequantize.inputs[0], stored(dequantize)
        assert codes is not None and kept is not None
        codes.const_value = StoredCodes(kept, "nk", codes.name or "", kernel)
        codes.shape = flat.shape = ir.Shape(kernel)
        replace_value(shaped, flat)
        drop_unused(shaped)
