"""Which node and kernel of a session runs each product of a model, and how long it takes.

A product is found in the optimized graph by the tensor that holds its weight, else by the names of its nodes, which ONNX Runtime keeps or
lengthens when it fuses.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompiler.calibration.data import tokenizer_beside
from qcompiler.calibration.feeds import example_feed, make_feeds
from qcompiler.graph import model_file
from qcompiler.graph.edits import all_nodes
from qcompiler.passes.normalize import Normalize
from qcompiler.report.float_islands import float_islands
from qcompiler.report.inspect_model import InspectedProduct, Inspection
from qcompiler.report.running import RunningModel, RunningProduct
from qcompiler.targets.profiled_session import ProfiledSession, RunningNode, profile

_FOLLOWERS = 4  # nodes that ONNX Runtime's fusions take into one product
_BLOCKED = "_nchwc"
"""Ends the names of convolutions that compute on channels in blocks, which are named for their result."""
_MULTIPLY = ("Conv", "MatMul", "Gemm", "Gather", "Attention", "LSTM", "GRU", "MoE")
TOKENS = 16  # of the run that is profiled, where the model takes tokens
_STEPS = frozenset({"DequantizeLinear", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Identity"})
_FLOAT_PRODUCTS = frozenset(
    {
        "MatMul", "Gemm", "Conv", "ConvTranspose", "FusedMatMul", "FusedGemm", "FusedConv", "NhwcFusedConv", "TransposeMatMul",
        "Gather",
    }
)  # fmt: skip


def inspect_session(
    found: Inspection, providers: Iterable[str] = ("CPUExecutionProvider",), data: str | None = None
) -> Inspection:
    """Run the inspected model, and add to the inspection how.

    Args:
        data: inputs in any form that ``--calib`` takes, of which the first feed is run; None makes some up.
    Raises:
        InputError, CalibrationError: it does not load or run, or takes inputs that cannot be made up.
        ResourceError: the temporary folder has no room for a copy.
    """
    path = Path(found.model)
    model = model_file.load(path)
    feed = example_feed(model, TOKENS) if data is None else _first_feed(model, data, path)
    session = profile(path, feed, list(providers))
    Normalize()(model)  # names as the inspection has them
    finder = _Finder(session, model)
    operators: dict[str, tuple[int, float]] = {}
    for node in session.nodes:
        count, microseconds = operators.get(node.op, (0, 0.0))
        operators[node.op] = (count + 1, microseconds + node.microseconds)
    products = [replace(product, running=finder.find(product)) for product in found.products]
    told = {
        title for p in products if p.running is not None and p.running.island for title in p.running.nodes
    }
    running = RunningModel(
        session.providers,
        session.library,
        {name: list(array.shape) for name, array in feed.items()},
        len(session.nodes),
        session.microseconds,
        [island for island in float_islands(session) if not told.issuperset(island.nodes)],
        dict(sorted(operators.items(), key=lambda item: -item[1][1])),
    )
    return replace(found, products=products, session=running)


def _first_feed(model: ir.Model, data: str, path: Path) -> Mapping[str, Any]:
    feeds = make_feeds(model, data, tokenizer_beside(path), 1, TOKENS, 0, lambda what, done, total: None)
    return next(iter(feeds.feeds))


class _Finder:
    def __init__(self, session: ProfiledSession, model: ir.Model) -> None:
        self._total = session.microseconds
        self._original = {node.name or "": node for node in all_nodes(model)}
        self._maker = {name: node for node in session.nodes for name in node.outputs if name}
        self._readers: dict[str, list[RunningNode]] = {}
        self._by_name: dict[str, list[RunningNode]] = {}
        for node in session.nodes:
            for name in dict.fromkeys(node.inputs):
                self._readers.setdefault(name, []).append(node)
            for name in _names_before(node.name) if node.name else ():
                self._by_name.setdefault(name, []).append(node)

    def find(self, product: InspectedProduct) -> RunningProduct:
        """The nodes that run a product."""
        reading: list[RunningNode] = []
        steps: list[RunningNode] = []
        if product.tensor:
            self._follow(product.tensor, reading, steps)
        nodes = _distinct([*reading, *(node for name in product.nodes for node in self._by_names(name))])
        steps = _distinct(steps)
        microseconds = sum(node.microseconds for node in (*nodes, *steps))
        return RunningProduct(
            list(dict.fromkeys(node.label for node in nodes)),
            [node.title for node in nodes],
            list(dict.fromkeys(node.provider for node in nodes if node.provider)),
            microseconds,
            microseconds / self._total if self._total else 0.0,
            _island(product, nodes, reading, steps),
        )

    def _follow(self, value: str, reading: list[RunningNode], steps: list[RunningNode]) -> None:
        """The nodes that read ``value``, behind those that unpack or turn it."""
        for node in self._readers.get(value, []):
            if node.op_type in _STEPS and node.inputs[0] == value:
                steps.append(node)
                self._follow(node.outputs[0], reading, steps)
            else:
                reading.append(node)

    def _by_names(self, name: str) -> list[RunningNode]:
        named = [node for node in self._by_name.get(name, []) if node.op_type not in _STEPS]
        return named or self._by_result(name)

    def _by_result(self, name: str) -> list[RunningNode]:
        """The node that yields what a node of the model yielded, or what only followed from that: its bias added, normalized, clipped."""
        node = self._original.get(name)
        for _ in range(_FOLLOWERS):
            if node is None or not node.outputs or not node.outputs[0].name:
                return []
            result = node.outputs[0].name
            blocked = self._by_name.get(f"{result}{_BLOCKED}")
            found = blocked[0] if blocked else self._maker.get(result)
            if found is not None:
                return [found] if any(part in found.op_type for part in _MULTIPLY) else []
            users = node.outputs[0].consumers()
            alone = len(users) == 1 and not any(part in users[0].op_type for part in _MULTIPLY)
            node = users[0] if alone else None
        return []


def _names_before(name: str) -> list[str]:
    """Names that a node may have had: fusions and layout changes of ONNX Runtime append to them."""
    found = [name]
    for mark in ("/", "_token_", "_nchwc", "_quant", "_Fused"):
        at = name.find(mark, 1)
        while at > 0:
            found.append(name[:at])
            at = name.find(mark, at + 1)
    return list(dict.fromkeys(found))


def _distinct(nodes: Iterable[RunningNode]) -> list[RunningNode]:
    return list({id(node): node for node in nodes}.values())


def _island(
    product: InspectedProduct, nodes: list[RunningNode], reading: list[RunningNode], steps: list[RunningNode]
) -> str:
    floats = [node for node in nodes if node.op_type in _FLOAT_PRODUCTS]
    if product.granularity is None or not floats:
        return ""
    unpacked_before = [node for node in floats if node not in reading]
    if unpacked_before:
        return f"{unpacked_before[0].op_type} multiplies floats: the weight was unpacked when the session was created, and takes the memory"
    if not any(step.op_type == "DequantizeLinear" for step in steps):
        return ""  # codes are looked up
    reason = _reason(product, floats[0], steps)
    return f"{floats[0].op_type} multiplies floats: the weight is unpacked in every run" + (
        f" ({reason})" if reason else ""
    )


def _reason(product: InspectedProduct, node: RunningNode, steps: list[RunningNode]) -> str:
    """Why ONNX Runtime's fusions left it."""
    rounded = product.activations
    if node.op_type == "Gather":
        return "no fusion makes GatherBlockQuantized: write it"
    if rounded is None and "Conv" in node.op_type:
        return "its activations are float, and no weight-only kernel takes a convolution"
    if rounded is not None and "16" in rounded.dtype:
        return f"no integer kernel takes {rounded.dtype} activations"
    if rounded is not None and (product.bits or 8) < 8:
        return "no kernel takes weights below 8 bits with rounded activations"
    if rounded is None and (product.bits or 0) >= 8:
        return "its activations are float, and only weights in groups of 2, 4 or 8 bits become MatMulNBits"
    if any(step.op_type == "Transpose" for step in steps):
        return "its weight lies behind a Transpose"
    if rounded is None and product.granularity == "tensor":
        return "one scale for all of it: MatMulNBits wants one for each group or output"
    return ""
