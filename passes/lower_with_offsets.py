"""Lower weights of codes, scales and offsets (float zero points, two-level scales) to com.microsoft::MatMulNBits.

*Given* the middle form (see ``offset_form``) -> MatMul, or -> Transpose -> MatMul.
*Result* for each product a MatMulNBits without zero points, and where there are offsets their product with the activation's sums over
groups, added to it (see ``offset_product``). Scales and offsets keep the nodes that compute them: ONNX Runtime folds these when it loads
the model.

MatMulNBits takes float zero points itself, but ONNX Runtime's CPU kernel then unpacks the whole weight in every run
(docs/decisions/0015). Rows of such a weight cannot be gathered by a kernel: an embedding stays in the middle form (``stays_plain``).
"""

import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, drop_unused, set_info
from qcompiler.graph.kernel_node import DOMAIN, LoweredNode, swap_kernel
from qcompiler.graph.offset_form import OffsetForm, offset_form
from qcompiler.graph.offset_product import GroupSums, add_offsets
from qcompiler.quant.scheme import QuantScheme

OP = "MatMulNBits"
BLOCK_SIZES = (16, 32, 64, 128, 256)


def stays_plain(scheme: QuantScheme, gathered: bool) -> str | None:
    """Why a weight with offsets is stored as plain ONNX, or None: a kernel reads it."""
    if not gathered:
        return None
    return (
        f"{scheme.label}: no kernel looks up rows of such codes; stored as plain ONNX, which ONNX Runtime "
        "unpacks in every run; set zero_point: int and two_level: false for it"
    )


class LowerWithOffsets(ir.passes.InPlacePass):
    """The pass.

    Args:
        accuracy_level: of MatMulNBits: 4 computes with int8 activations, 0 in the activation's float type.
    """

    def __init__(self, accuracy_level: int) -> None:
        super().__init__()
        self._accuracy_level = accuracy_level
        self.lowered: list[LoweredNode] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self._graph = model.graph
        self._names = Names(model)
        self._sums = GroupSums(model.graph, self._names)
        before = len(self.lowered)
        for node in list(model.graph):
            if node.graph is None or not node.outputs[0].uses():
                continue
            form = offset_form(node)
            if form is not None:
                self._lower(node, form)
        if self.lowered:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return ir.passes.PassResult(model, modified=len(self.lowered) > before)

    def _lower(self, last: ir.Node, form: OffsetForm) -> None:
        products = _products(last, form)
        if not products or form.group not in BLOCK_SIZES:
            return
        name = (last.outputs[0].name or "weight").removesuffix(".dequantized")
        n, k = form.shape
        weight = add_initializer(self._graph, form.packed(), self._names.value(f"{name}.weight"))
        offset = None if form.offset is None else self._turned(form.offset, form, last, name)
        attributes = {
            "K": k, "N": n, "bits": form.bits, "block_size": form.group, "accuracy_level": self._accuracy_level,
        }  # fmt: skip
        for product in products:
            x = product.inputs[0]
            assert x is not None
            node = swap_kernel(product, OP, [x, weight, form.scale], attributes, last, self._names)
            self.lowered.append(LoweredNode(node.name or "", OP, weight.name or ""))
            if offset is not None:
                add_offsets(node, self._sums.of(x, k, form.group, node), offset, self._names)
        drop_unused(last.outputs[0])

    def _turned(self, offset: ir.Value, form: OffsetForm, last: ir.Node, name: str) -> ir.Value:
        """The offsets as the right factor of a MatMul, [G, N]."""
        turned = ir.Value(name=self._names.value(f"{name}.offsets"))
        dtype = last.outputs[0].dtype or ir.DataType.FLOAT
        set_info(turned, dtype, ir.Shape([-(-form.shape[1] // form.group), form.shape[0]]))
        node = ir.node(
            "Transpose",
            [offset],
            {"perm": [1, 0]},
            outputs=[turned],
            name=self._names.node(f"{name}.offsets"),
        )
        assert last.graph is not None
        last.graph.insert_before(last, node)
        return turned


def _products(last: ir.Node, form: OffsetForm) -> list[ir.Node]:
    """The MatMul nodes that multiply with the weight; none where anything else reads it."""
    if form.layout != "kn" or last.outputs[0].is_graph_output():
        return []  # layout nk: rows are gathered, or a Transpose follows that is a form of its own
    uses = last.outputs[0].uses()
    source = last.inputs[0]
    gathered = source is not None and any(user is not last for user, _ in source.uses())
    if gathered or any(user.op_type != "MatMul" or index != 1 for user, index in uses):
        return []
    return [user for user, _ in uses]
