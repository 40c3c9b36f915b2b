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
from qcompiler.graph.kernel_node import BLOCK_SIZES, DOMAIN, LoweredNode, swap_kernel
from qcompiler.graph.offset_form import OffsetForm, offset_form
from qcompiler.graph.offset_product import GroupSums, add_offsets
from qcompiler.quant.scheme import QuantScheme

OP = "MatMulNBits"
_WITHIN = ("Reshape", "Add", "Slice", "Cast", "Transpose")  # what a form has behind DequantizeLinear


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
        # A line for each weight that could have been lowered and is not, with the reason.
        self.left: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self._graph = model.graph
        self._names = Names(model)
        self._sums = GroupSums(model.graph, self._names)
        before = len(self.lowered)
        for node in list(model.graph):
            if node.graph is None or not node.outputs[0].uses():
                continue
            form = offset_form(node)
            # One that is the beginning of another is judged as that; of groups of rows the target has told.
            if form is not None and not _goes_on(node) and not _groups_rows(node, form):
                self._lower(node, form)
        if self.lowered:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return ir.passes.PassResult(model, modified=len(self.lowered) > before)

    def _lower(self, last: ir.Node, form: OffsetForm) -> None:
        name = (last.outputs[0].name or "weight").removesuffix(".dequantized")
        refusal = _refusal(last, form)
        if refusal is not None:
            self.left.append(f"{name}: stored as plain ONNX: {refusal}")
            return
        products = _products(last, form)
        if not products:
            return
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
    """The MatMul nodes that multiply with the weight; none where rows of it are gathered (``stays_plain``)."""
    if form.layout == "nk" or any(user is not last for user, _ in _source(last).uses()):
        return []
    return [user for user, _ in last.outputs[0].uses()]


def _goes_on(node: ir.Node) -> bool:
    """Whether the nodes up to this one are the beginning of a longer form."""
    return any(
        user.op_type in _WITHIN and (offset_form(user) is not None or _goes_on(user))
        for user in node.outputs[0].consumers()
    )


def _groups_rows(last: ir.Node, form: OffsetForm) -> bool:
    """Whether the weight lies so for its readers that groups are along N."""
    other = ("MatMul", 1) if form.layout == "nk" else ("Gather", 0)
    return any((user.op_type, index) == other for user, index in last.outputs[0].uses())


def _refusal(last: ir.Node, form: OffsetForm) -> str | None:
    """Why no kernel can read a weight whose rows are not gathered; None: one can."""
    if form.group not in BLOCK_SIZES:
        return f"{OP} has no blocks of {form.group}"
    if last.outputs[0].is_graph_output():
        return "it is an output of the model"
    rows = last.outputs[0]
    if form.layout == "kn":
        rows = _source(last)
        for user, index in last.outputs[0].uses():
            if (user.op_type, index) != ("MatMul", 1):
                return f"{user.name} ({user.op_type}) reads it, and is no product with it"
    for user, index in rows.uses():
        if user is not last and (user.op_type, index) != ("Gather", 0):
            return f"{user.name} ({user.op_type}) reads it, and looks up no rows of it"
    return None


def _source(transpose: ir.Node) -> ir.Value:
    """The weight [N, K] that is turned."""
    value = transpose.inputs[0]
    assert value is not None
    return value
