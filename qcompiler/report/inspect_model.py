"""What is in a model, float or quantized by whomever: every linear, head, embedding, convolution, attention.

A weight that several nodes read (a tied head, an inlined function) is one product. The file is only read,
and of its weights nothing but shapes.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompiler.graph import model_file
from qcompiler.graph.blocks import blocks
from qcompiler.graph.census import Census, take_census
from qcompiler.graph.edits import all_nodes
from qcompiler.graph.operator_body import is_ours
from qcompiler.graph.quantized import REASON_KEY
from qcompiler.graph.weights import constant_view
from qcompiler.passes.normalize import Normalize
from qcompiler.quant.codebook import TABLES
from qcompiler.report.input_codes import InputCodes, input_codes
from qcompiler.report.quantized_products import StoredWeight, read_products
from qcompiler.report.running import RunningModel, RunningProduct

REPORT = "report.json"
NOBODY_SAYS = "stays float; the file does not say why"


@dataclass(frozen=True)
class InspectedProduct:
    """One product of the graph.

    Attributes:
        shape: (N, K) of a matrix, the weight's own shape of a convolution; empty without a constant weight.
        dtype: of the stored weight: "float32", "uint4"; empty without one.
        bits: of one code.
        group_size: weights that share a scale; None where a channel, the tensor or nothing does.
        granularity: "group", "channel", "tensor"; None for a float weight.
        symmetric: whether zero points are the midpoint; None for a float weight.
        bytes: of weight, scales and zero points.
        share: of all the model's tensors.
        reason: what decided it, as far as the model or its report.json says.
        algorithm: that found the codes, likewise.
        double_quant: whether scales are in 8 bits themselves.
        beside: what is added to the product, and counted in ``bytes``: "rank 16".
        float_zero_points: whether zero points are numbers of the scales' type.
        two_level: whether scales are whole numbers times the step of a super-block.
        groups_rows: whether a group holds weights of several rows of one input channel.
        activations: how what it multiplies is rounded; None where that is float, or two products of the weight differ.
        block: of the model that it is in (``graph.blocks``), "" outside of any; of several nodes, that of the first.
        nodes: names of the nodes that read the weight; a tied one has several.
        tensor: name of the constant that holds the weight, or its codes.
        running: how it runs in a session; None where none was asked for (see ``inspect_session``).
        sqnr_db: of what the layer computes, against the float model, as the compile noted it; None where nothing is noted.
    """

    name: str
    role: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    bits: int | None
    granularity: str | None
    group_size: int | None
    symmetric: bool | None
    bytes: int
    share: float
    reason: str
    algorithm: str = ""
    double_quant: bool = False
    beside: str = ""
    float_zero_points: bool = False
    two_level: bool = False
    groups_rows: bool = False
    activations: InputCodes | None = None
    block: str = ""
    nodes: tuple[str, ...] = ()
    tensor: str = ""
    sqnr_db: float | None = None
    running: RunningProduct | None = None

    @property
    def is_tied(self) -> bool:
        """Whether one stored weight has several roles."""
        return "/" in self.role

    @property
    def label(self) -> str:
        """How the weight is stored: ``int4 g64 asym``, ``nf4 g64 + rank 16``, ``float32``."""
        return " + ".join(part for part in (self._codes, self.beside) if part)

    @property
    def _codes(self) -> str:
        if self.granularity is None:
            return self.dtype
        if self.dtype in TABLES:
            return f"{self.dtype} g{self.group_size}{' dq' if self.double_quant else ''}"
        width = f"g{self.group_size}" if self.group_size is not None else self.granularity
        width += "-out" if self.groups_rows else ""
        if self.dtype.startswith("float8"):
            return f"{self.dtype.removeprefix('float8').removesuffix('fn')} {width}"
        extra = " two-level" if self.two_level else " float-zp" if self.float_zero_points else ""
        return f"int{self.bits} {width} {'sym' if self.symmetric else 'asym'}{extra}"


@dataclass(frozen=True)
class Inspection:
    """A whole model.

    Attributes:
        file_bytes: of the model with its data files.
        tensor_bytes: of all its tensors.
        quantized_bytes: of quantized weights with scales and zero points.
        float_bytes: of float weights of products.
        bits_per_weight: over the quantized weights; None without any.
        operators: nodes of each type, most frequent first.
        session: how it runs; None where that was not asked for.
    """

    model: str
    producer: str
    ir_version: int
    opsets: dict[str, int]
    inputs: list[str]
    outputs: list[str]
    products: list[InspectedProduct]
    file_bytes: int
    tensor_bytes: int
    quantized_bytes: int
    float_bytes: int
    quantized: int
    bits_per_weight: float | None
    nodes: int
    operators: dict[str, int]
    session: RunningModel | None = None


def inspect(path: str | Path) -> Inspection:
    """Look into the model at ``path``.

    Raises:
        InputError: it cannot be read.
    """
    place = model_file.model_path(path)
    return inspect_loaded(place, model_file.load(place))


def inspect_loaded(place: Path, model: ir.Model) -> Inspection:
    """The same of a model that was loaded from ``place``; it is normalized here."""
    files = model_file.files_of(place, model)
    operators = _count_operators(model)
    nodes = sum(operators.values())
    facts = (model.producer_name or "", model.ir_version, dict(model.opset_imports))
    inputs, outputs = (
        [_signature(value) for value in group] for group in (model.graph.inputs, model.graph.outputs)
    )
    Normalize()(model)  # in memory only: inlined functions and lifted constants show their weights
    stored = read_products(model)
    tensor_bytes = _tensor_bytes(model)
    reasons = _reported_reasons(place.with_name(REPORT))
    order = {node: index for index, node in enumerate(all_nodes(model))}
    found = [_of_quantized(weight) for weight in stored]
    found += _of_census(take_census(model), {node for weight in stored for node in weight.nodes})
    found.sort(key=lambda pair: order[pair[0]])
    block_of = blocks(model)
    unsaid = NOBODY_SAYS if stored else ""
    products = [_completed(product, tensor_bytes, reasons, block_of[node], unsaid) for node, product in found]
    packed_bytes = sum(product.bytes for product in products if product.granularity is not None)
    codes = sum(weight.size for weight in stored)
    return Inspection(
        str(place),
        *facts,
        inputs,
        outputs,
        products,
        file_bytes=sum(file.stat().st_size for file in files.values()),
        tensor_bytes=tensor_bytes,
        quantized_bytes=packed_bytes,
        float_bytes=sum(product.bytes for product in products) - packed_bytes,
        quantized=len(stored),
        bits_per_weight=8 * packed_bytes / codes if codes else None,
        nodes=nodes,
        operators=operators,
    )


def _of_quantized(weight: StoredWeight) -> tuple[ir.Node, InspectedProduct]:
    return weight.nodes[0], InspectedProduct(
        weight.name,
        "/".join(role.value for role in weight.roles),
        _operators(weight.nodes),
        weight.shape,
        weight.dtype,
        weight.bits,
        weight.granularity,
        weight.group_size,
        weight.symmetric,
        weight.bytes,
        0.0,
        weight.reason,
        weight.algorithm,
        weight.double_quant,
        weight.beside,
        weight.float_zero_points,
        weight.two_level,
        weight.groups_rows,
        _input_codes(weight),
        nodes=_names(weight.nodes),
        tensor=weight.tensor,
        sqnr_db=weight.sqnr_db,
    )


def _input_codes(weight: StoredWeight) -> InputCodes | None:
    """Of its products: one, or all of them alike."""
    found = {codes for node in weight.nodes if (codes := input_codes(node)) is not None}
    return found.pop() if len(found) == 1 else None


def _of_census(census: Census, quantized: set[ir.Node]) -> list[tuple[ir.Node, InspectedProduct]]:
    """Float weights, and products without one; nodes that read quantized weights are left out."""
    found: list[tuple[ir.Node, InspectedProduct]] = []
    for weight in census.weights:
        nodes = [use.node for use in weight.uses]
        roles = "/".join(dict.fromkeys(use.role.value for use in weight.uses))
        product = _float(weight.name, roles, _operators(nodes), weight.shape, weight.source, _noted(nodes[0]))
        found.append((nodes[0], replace(product, bytes=weight.float_bytes, nodes=_names(nodes))))
    counted = {weight.source for weight in census.weights}
    for alone in census.left_alone:
        node = alone.node
        if node in quantized:
            continue
        name, reason = alone.name, _noted(node) or alone.reason
        view = next((v for v in map(constant_view, node.inputs[:2]) if v is not None), None)
        if view is None:
            product = InspectedProduct(
                name, alone.role.value, node.op_type, (), "", None, None, None, None, 0, 0.0, reason
            )
        else:
            product = _float(name, alone.role.value, node.op_type, view.final_shape, view.source, reason)
            if view.source in counted:
                product = replace(product, bytes=0)  # they are with the first node that reads it
            counted.add(view.source)
        found.append((node, replace(product, nodes=_names([node]))))
    return found


def _names(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node.name or "" for node in nodes))


def _noted(node: ir.Node) -> str:
    """Why a product stays float, as a compile noted it."""
    return node.metadata_props.get(REASON_KEY, "")


def _float(
    name: str, role: str, op: str, shape: tuple[int, ...], source: ir.Value, reason: str
) -> InspectedProduct:
    tensor = source.const_value
    assert tensor is not None
    dtype = str(tensor.dtype.numpy())
    bits = int(tensor.dtype.bitwidth)
    return InspectedProduct(
        name,
        role,
        op,
        shape,
        dtype,
        bits,
        None,
        None,
        None,
        int(tensor.nbytes),
        0.0,
        reason,
        tensor=source.name or "",
    )


def _completed(
    product: InspectedProduct, total: int, reasons: dict[str, str], block: str, unsaid: str
) -> InspectedProduct:
    """With its block, its share of the model and, for a float one, the reason that a report gives, else ``unsaid``."""
    reason = product.reason
    if product.granularity is None:
        reason = reasons.get(product.name, reason) or unsaid
    return replace(product, share=product.bytes / total if total else 0.0, reason=reason, block=block)


def _operators(nodes: Iterable[ir.Node]) -> str:
    return "/".join(dict.fromkeys(node.op_type for node in nodes))


def _count_operators(model: ir.Model) -> dict[str, int]:
    """Of the graph, its functions and branches, but for the bodies of our operators: they say what their nodes compute."""
    bodies = {node for body in filter(is_ours, model.functions.values()) for node in body}
    counts: dict[str, int] = {}
    for node in all_nodes(model):
        if node in bodies:
            continue
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _tensor_bytes(model: ir.Model) -> int:
    """Of all initializers, each tensor once."""
    values = model.graph.initializers.values()
    tensors = {id(value.const_value): value.const_value for value in values}
    return sum(int(tensor.nbytes) for tensor in tensors.values() if tensor is not None)


def _signature(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else str(value.dtype.name).lower()
    sizes = (
        "?" if value.shape is None else ", ".join("?" if str(d) == "None" else str(d) for d in value.shape)
    )
    return f"{value.name}: {dtype} [{sizes}]"


def _reported_reasons(report: Path) -> dict[str, str]:
    """Why nodes were left alone, by name, from the report.json beside a model that we compiled."""
    try:
        content: Any = json.loads(report.read_text(encoding="utf-8"))
        return {str(entry["name"]): str(entry["reason"]) for entry in content["skipped"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # not ours: the reasons are an extra, the model is what was asked about
