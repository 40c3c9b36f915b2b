"""Lower codebook weights to ONNX Runtime's com.microsoft::MatMulBnb4.

*Given* the middle form (see ``codebook_form``) -> MatMul, or -> Transpose -> MatMul.
*Result* one MatMulBnb4 for each product. Its codes are uint8 [ceil(N K / 2)], two a byte, of the row-major weight [N, K]; its
absmax holds a scale for each block of that. Scales in 8 bits keep the nodes that compute them: ONNX Runtime folds these when it
loads the model.

What the kernel cannot do stays in the middle form: ``stays_plain`` says why.
"""

import onnx_ir as ir

from qcompiler.graph.codebook_form import CodebookForm, codebook_form, stored_codebook
from qcompiler.graph.edits import Names, add_initializer, drop_unused
from qcompiler.graph.kernel_node import BLOCK_SIZES, DOMAIN, LoweredNode, swap_kernel
from qcompiler.quant import packing

OP = "MatMulBnb4"
QUANT_TYPES = {"fp4": 0, "nf4": 1}


def stays_plain(dtype: str, gathered: bool) -> str | None:
    """Why a codebook weight is stored as plain ONNX, or None: a kernel reads it.

    Args:
        dtype: name of the table.
        gathered: whether rows of the weight are looked up (an embedding).
    """
    unfolded = "stored as plain ONNX, which ONNX Runtime turns into floats when it loads the model"
    if dtype not in QUANT_TYPES:
        known = " and ".join(sorted(QUANT_TYPES, reverse=True))
        return f"{dtype}: {OP} knows {known} alone; {unfolded}"
    if gathered:
        return f"{dtype}: no kernel looks up rows of such codes; {unfolded}"
    return None


class LowerToMatMulBnb4(ir.passes.InPlacePass):
    """The pass."""

    def __init__(self) -> None:
        super().__init__()
        self.lowered: list[LoweredNode] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self._graph = model.graph
        self._names = Names(model)
        before = len(self.lowered)
        for node in list(model.graph):
            if node.graph is None or not node.outputs[0].uses():
                continue
            form = codebook_form(node)
            if form is not None:
                self._lower(node, form)
        if self.lowered:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return ir.passes.PassResult(model, modified=len(self.lowered) > before)

    def _lower(self, last: ir.Node, form: CodebookForm) -> None:
        products, others = _readers(last, form)
        if not products or form.block not in BLOCK_SIZES or stays_plain(form.dtype, others) is not None:
            return
        name = (last.outputs[0].name or "weight").removesuffix(".dequantized")
        n, k = form.shape
        weight = add_initializer(self._graph, _packed(form), self._names.value(f"{name}.weight"))
        attributes = {"K": k, "N": n, "block_size": form.block, "quant_type": QUANT_TYPES[form.dtype]}
        for product in products:
            inputs = [product.inputs[0], weight, form.scale]
            node = swap_kernel(product, OP, inputs, attributes, last, self._names)
            self.lowered.append(LoweredNode(node.name or "", OP, weight.name or ""))
        for reader in {node for node, _ in last.outputs[0].uses()}:
            drop_unused(reader.outputs[0])
        drop_unused(last.outputs[0])


def _readers(last: ir.Node, form: CodebookForm) -> tuple[list[ir.Node], bool]:
    """MatMul nodes that multiply with the weight, and whether anything else reads it."""
    products: list[ir.Node] = []
    others = last.outputs[0].is_graph_output()
    for node, index in last.outputs[0].uses():
        if form.layout == "nk" and node.op_type == "Transpose":
            continue  # the form of layout kn, which comes as a node of its own
        if form.layout == "kn" and node.op_type == "MatMul" and index == 1:
            products.append(node)
        else:
            others = True
    if form.layout == "kn":
        source = last.inputs[0]
        assert source is not None
        others = others or any(user is not last for user, _ in source.uses())
    return products, others


def _packed(form: CodebookForm) -> ir.TensorProtocol:
    """The B input of MatMulBnb4."""
    ours = stored_codebook(form)
    if ours is not None:
        return ours.packed
    n, k = form.shape
    codes = form.codes.numpy().astype("uint8").reshape(-1)[: n * k]
    return ir.Tensor(packing.pack_high_first(codes))
