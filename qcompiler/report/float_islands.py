"""Floats between integers: where ONNX Runtime unpacks codes, computes in float and rounds again.

*Given* the nodes that run. *Result* each stretch of float nodes that reads nothing but dequantized values (and constants and shapes) and
is read by nothing but rounding, with the reason why no integer kernel took it.
"""

from collections.abc import Iterable, Sequence

from qcompiler.report.running import FloatIsland
from qcompiler.targets.profiled_session import ProfiledSession, RunningNode

_UNPACKS = "DequantizeLinear"
_ROUNDS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_PRODUCTS = frozenset(
    {"Conv", "ConvTranspose", "MatMul", "Gemm", "FusedConv", "FusedMatMul", "NhwcFusedConv"}
)
_INTEGERS = frozenset({"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "ConvInteger"})
"""They multiply codes and yield floats."""
_LAYOUT = frozenset({"ReorderInput", "ReorderOutput", "Cast", "Identity"})
_WITH_INTEGER_KERNELS = frozenset(
    {
        "Conv", "MatMul", "Gemm", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax",
        "Where", "MaxPool", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Slice", "Split", "Resize", "Expand",
        "Relu", "Clip",
    }
)  # fmt: skip
"""What ONNX Runtime's CPU computes on codes where everything around is rounded."""


def float_islands(session: ProfiledSession) -> list[FloatIsland]:
    """In the order of the graph."""
    return _Search(session).run()


class _Search:
    def __init__(self, session: ProfiledSession) -> None:
        self._session = session
        self._maker = {name: node for node in session.nodes for name in node.outputs if name}
        self._readers: dict[str, list[RunningNode]] = {}
        for node in session.nodes:
            for name in dict.fromkeys(node.inputs):
                self._readers.setdefault(name, []).append(node)
        self._place = {id(node): index for index, node in enumerate(session.nodes)}
        self._outputs = set(session.graph_outputs)

    def run(self) -> list[FloatIsland]:
        seen: set[int] = set()
        found = []
        for node in self._session.nodes:
            if not self._unpacks_activations(node):
                continue
            for reader in self._readers.get(node.outputs[0], []):
                if id(reader) in seen or not self._computes_floats(reader):
                    continue
                stretch = self._stretch(reader)
                seen.update(map(id, stretch))
                if self._is_closed(stretch):
                    found.append(self._island(stretch))
        return found

    def _unpacks_activations(self, node: RunningNode) -> bool:
        return node.op_type == _UNPACKS and node.inputs[0] not in self._session.initializers

    def _stretch(self, start: RunningNode) -> list[RunningNode]:
        """The float nodes that are connected to ``start`` by float values, in order."""
        found = {id(start): start}
        stack = [start]
        while stack:
            node = stack.pop()
            makers = [self._maker[name] for name in node.inputs if name in self._maker]
            readers = [reader for name in node.outputs for reader in self._readers.get(name, [])]
            for other in [*makers, *readers]:
                if id(other) not in found and self._computes_floats(other):
                    found[id(other)] = other
                    stack.append(other)
        return sorted(found.values(), key=lambda node: self._place[id(node)])

    def _computes_floats(self, node: RunningNode) -> bool:
        return node.op_type not in _INTEGERS | _ROUNDS | {_UNPACKS, "Shape", "Size"}

    def _is_closed(self, stretch: Sequence[RunningNode]) -> bool:
        inside = {name for node in stretch for name in node.outputs}
        if inside & self._outputs:
            return False
        for node in stretch:
            for name in node.inputs:
                maker = self._maker.get(name)
                if name and maker is None and name not in self._session.initializers:
                    return False  # an input of the graph, or a value of an outer one
        rounded = {reader.op_type for name in inside for reader in self._readers.get(name, [])}
        return bool(rounded & _ROUNDS)

    def _island(self, stretch: Sequence[RunningNode]) -> FloatIsland:
        unpacking = self._around(stretch, makers=True)
        rounding = self._around(stretch, makers=False)
        microseconds = sum(node.microseconds for node in (*unpacking, *stretch, *rounding))
        return FloatIsland(
            [node.title for node in stretch],
            list(dict.fromkeys(node.op_type for node in stretch)),
            [node.inputs[0] for node in unpacking if self._unpacks_activations(node)],
            self._reason(stretch),
            microseconds,
            microseconds / self._session.microseconds if self._session.microseconds else 0.0,
        )

    def _around(self, stretch: Sequence[RunningNode], makers: bool) -> list[RunningNode]:
        if makers:
            nodes = [self._maker[name] for node in stretch for name in node.inputs if name in self._maker]
            return _distinct(node for node in nodes if node.op_type == _UNPACKS)
        nodes = [
            reader for node in stretch for name in node.outputs for reader in self._readers.get(name, [])
        ]
        return _distinct(node for node in nodes if node.op_type in _ROUNDS)

    def _reason(self, stretch: Sequence[RunningNode]) -> str:
        without = list(
            dict.fromkeys(
                node.op_type for node in stretch if node.op_type not in _WITH_INTEGER_KERNELS | _LAYOUT
            )
        )
        if without:
            return f"no integer kernel takes {', '.join(without)}"
        if len(stretch) > 1:
            return "what lies between these nodes is not rounded, so no integer kernel takes one of them"
        node = stretch[0]
        weights = [name for name in node.inputs if self._session.initializers.get(name, 0) > 1]
        if node.op_type in _PRODUCTS and weights:
            return f"its weight {weights[0]} is float"
        read = [name for name in node.inputs if name in self._maker and len(self._readers[name]) > 1]
        if read:
            return f"{read[0]} is unpacked for several nodes; kernels take a value with a DequantizeLinear of its own"
        if len([reader for name in node.outputs for reader in self._readers.get(name, [])]) > 1:
            return "what it yields has several readers"
        return "ONNX Runtime did not fuse it: codes of types that no kernel takes together, or a level that fuses nothing"


def _distinct(nodes: Iterable[RunningNode]) -> list[RunningNode]:
    return list({id(node): node for node in nodes}.values())
