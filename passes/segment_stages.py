"""The weights of a segment in stages: the inputs that they read, and which of them have to be quantized before an input can be observed."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qcompiler.algorithms import Need
from qcompiler.calibration.windows import Tap, Window
from qcompiler.graph.reads import node_reads
from qcompiler.recipe.planned_weight import PlannedWeight

Readers = Mapping[Tap, Mapping[ir.Node, PlannedWeight]]
"""The products that read an input alike, with their weights."""


def by_input(members: Mapping[ir.Node, PlannedWeight]) -> dict[Tap, dict[ir.Node, PlannedWeight]]:
    """The inputs that the members read, in their order."""
    found: dict[Tap, dict[ir.Node, PlannedWeight]] = {}
    for node, planned in members.items():
        value = node.inputs[0]
        assert value is not None
        kernel = planned.weight.kernel
        tap = Tap(value, None if kernel is None else Window.of(node, kernel))
        found.setdefault(tap, {})[node] = planned
    return found


def taps(readers_of: Readers) -> dict[Tap, tuple[int, frozenset[Need]]]:
    """What to observe of each input: its channels K, and what the algorithms of its readers need."""
    wanted: dict[Tap, tuple[int, frozenset[Need]]] = {}
    for tap, readers in readers_of.items():
        needs = frozenset(need for planned in readers.values() for need in planned.needs)
        if needs:
            wanted[tap] = (next(iter(readers.values())).weight.shape[1], needs)
    return wanted


def stages(nodes: Sequence[ir.Node], members: Mapping[ir.Node, PlannedWeight]) -> list[Readers]:
    """The inputs of the members with their readers, in stages: no member of a stage computes another's input."""
    depth: dict[ir.Value, int] = {}
    levels: dict[int, dict[ir.Node, PlannedWeight]] = {}
    for node in nodes:
        above = max((depth.get(value, 0) for value in node_reads(node)), default=0)
        if node in members:
            levels.setdefault(above, {})[node] = members[node]
            above += 1
        depth.update((output, above) for output in node.outputs)
    return [by_input(levels[level]) for level in sorted(levels)]
