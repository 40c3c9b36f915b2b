"""The peak of anonymous memory that a compile will need, before anything of size is computed.

The weights at work (``Plan.forecast_peak_bytes``) or, where a recipe calibrates, the activations of one sample if they take more; and the
border activations that are kept of all samples, up to the share of the limit past which they go to a file.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping

import onnx_ir as ir

from qcompiler.calibration.data import Feed
from qcompiler.calibration.feeds import example_feed, input_specs
from qcompiler.calibration.fill import complete_feed
from qcompiler.calibration.segments import cut_segments
from qcompiler.graph.extract import is_constant
from qcompiler.graph.reads import node_reads
from qcompiler.graph.shape_inference import activation_bytes
from qcompiler.recipe import CalibrationSettings
from qcompiler.recipe.plan import FIXED_BYTES, Plan
from qcompiler.recipe.planned_weight import PlannedWeight

BORDER_SHARE = 4
MOST_BORDERS = 256 << 20
"""Border activations stay in memory up to a quarter of the limit, and so many bytes: of a file the system keeps what it has room for."""
RUN_FACTOR = 5
"""Memory of a run over the activations alive at once: 4.8 measured (models.tiny_lm, windows of 512 and 1024), since ONNX Runtime's arena
grows by powers of two and the last segment's is still there when the next begins."""
BORDER_FACTOR = 2
"""What a segment reads and what it hands on are kept side by side."""
HEAP_BYTES = 60 << 20
"""Blocks of 16 MB and less that were freed and stay with the process."""
TUNED_BYTES = 4 * 9
"""Of each weight of a segment that is tuned: itself, its latent and its momentum, the values and their gradient, and the parts of a step
that are alive at once."""
GRADIENT_FACTOR = 2
"""Every activation of a tuned segment is kept for the backward run, and what torch keeps beside it (a mask, an inverse) takes as much."""
SCORED_BYTES = 4 * 3
"""Of each number of a weight that is scored: its gradient, its score, and its error at one number of bits with the codes."""


def forecast_peak_bytes(
    model: ir.Model, plan: Plan, calibration: CalibrationSettings, feed: Feed | None, limit: int
) -> int:
    """Bytes of a compile.

    Args:
        model: prepared.
        calibration: how many samples there will be, and how long those of a language model are.
        feed: the first of the user's, where there is one to look at; the others are taken to be like it.
        limit: of the compile.
    """
    weights = plan.forecast_peak_bytes()
    if not plan.needs_data:
        return weights
    # What comes after the last weight is run where bits are given out or data is sampled, and not by calibration.
    to_the_end = plan.mixed is not None or feed is None
    feed = (
        example_feed(model, calibration.length) if feed is None else complete_feed(feed, input_specs(model))
    )
    sizes = activation_bytes(model, {name: array.shape for name, array in feed.items()})
    anchors = {use.top_level for planned in plan.quantized for use in planned.weight.uses}
    run = None if to_the_end else _before(model.graph, anchors)
    live, border = _alive(model.graph, sizes, anchors, run)
    tuned = _tuned_bytes(model, plan, sizes, anchors)
    # The float model's border activations go along where segments are tuned.
    streams = 2 if tuned else 1
    borders = BORDER_FACTOR * border * calibration.samples
    # A segment runs, then its weights are worked on, then tuned; bits are given out before.
    scored = _scored_bytes(model, plan, sizes, anchors, border_limit(limit))
    work = FIXED_BYTES + max(RUN_FACTOR * live, tuned, scored, _segment_bytes(model, plan, anchors))
    work = max(weights, work)
    return work + streams * min(borders, border_limit(limit))


def border_limit(limit: int) -> int:
    """Bytes of border activations that stay in memory, under a limit of the compile."""
    return min(limit // BORDER_SHARE, MOST_BORDERS)


def enough_memory(forecast: Callable[[int], int], start: int) -> int:
    """A limit that a compile under it keeps, in bytes, whole MiB: with the limit grows what is kept in memory, up to all of it.

    Args:
        forecast: the peak in bytes under a limit; grows less than the limit does.
        start: no limit below it is enough.
    """
    limit = _whole_mib(start)
    while (peak := forecast(limit)) > limit:
        limit = _whole_mib(peak)
    return limit


def _whole_mib(count: int) -> int:
    return -(-count >> 20) << 20


def _segment_bytes(model: ir.Model, plan: Plan, anchors: Collection[ir.Node]) -> int:
    """The most that the weights of any segment take with the Hessians that are held for others of it meanwhile, and the heap that stays.

    Where scales move, a segment's Hessians are there at once; else those of one stage, which is about those of one input (of one stack of
    experts).
    """
    planned_by_node: dict[ir.Node, list[PlannedWeight]] = {}
    for planned in plan.quantized:
        for use in planned.weight.uses:
            if use.in_body is None and planned.needs:
                planned_by_node.setdefault(use.node, []).append(planned)
    most = 0
    for segment in cut_segments(model.graph, set(anchors)):
        groups: dict[ir.Value | str | None, dict[int | None, PlannedWeight]] = {}
        for node in segment.nodes:
            for planned in planned_by_node.get(node, ()):
                expert = planned.weight.expert
                key = node.inputs[0] if expert is None else expert.stack
                groups.setdefault(key, {})[None if expert is None else expert.index] = planned
        every = [planned for group in groups.values() for planned in group.values()]
        moves = any(planned.settings.transforms for planned in every)
        for group in groups.values():
            stage = every if moves else list(group.values())
            squares = [planned.hessian_bytes for planned in stage if planned.observes_hessian]
            for planned in group.values():
                own = planned.hessian_bytes if planned.observes_hessian else 0
                # Observing: the sums and one product of rows. Working: its own, and what waits for the others.
                observing = sum(squares) + max(squares, default=0)
                working = planned.work_bytes(plan.mixed is not None) + sum(squares) - own
                most = max(most, observing, working)
    return most + HEAP_BYTES


def _tuned_bytes(model: ir.Model, plan: Plan, sizes: Mapping[str, int], anchors: Collection[ir.Node]) -> int:
    """The most that tuning any segment takes: its weights under training, the statistics of its inputs, its activations."""
    tuned = {
        use.node: planned
        for planned in plan.quantized
        if planned.settings.reconstruction is not None
        for use in planned.weight.uses
    }
    most = 0
    for segment in cut_segments(model.graph, set(anchors)) if tuned else ():
        members = {node: tuned[node] for node in segment.nodes if node in tuned}
        if not members:
            continue
        inputs = {node.inputs[0]: planned.weight.shape[1] for node, planned in members.items()}
        activations = sum(sizes.get(value.name or "", 0) for node in segment.nodes for value in node.outputs)
        weights = sum(planned.weight.size for planned in set(members.values()))
        most = max(
            most,
            TUNED_BYTES * weights + sum(4 * k * k for k in inputs.values()) + GRADIENT_FACTOR * activations,
        )
    return most


def _scored_bytes(
    model: ir.Model, plan: Plan, sizes: Mapping[str, int], anchors: Collection[ir.Node], limit: int
) -> int:
    """The most that a backward run through any segment takes, with what all segments hand on; ``limit`` of that is in memory."""
    if not plan.scored:
        return 0
    segments = cut_segments(model.graph, set(anchors))
    by_node = {use.node: planned for planned in plan.quantized for use in planned.weight.uses}
    kept = sum(_float_bytes(value, sizes) for value in {v for segment in segments for v in segment.inputs})
    most = 0
    for segment in segments:
        weights = [planned.weight for planned in {by_node[node] for node in segment.nodes if node in by_node}]
        held = SCORED_BYTES * max((weight.size for weight in weights), default=0)
        if plan.scored > 1:  # the scores of all wait for the next sample
            held += 4 * sum(weight.size for weight in weights)
        held += 4 * sum(weight.size for weight in weights if weight.dtype is not ir.DataType.FLOAT)
        activations = sum(_float_bytes(value, sizes) for node in segment.nodes for value in node.outputs)
        most = max(most, GRADIENT_FACTOR * activations + held)
    return most + min(plan.scored * kept, limit)


def _float_bytes(value: ir.Value, sizes: Mapping[str, int]) -> int:
    """Of an activation as torch holds it, no float with less than 32 bits; what is constant is mapped."""
    if is_constant(value):
        return 0
    narrow = value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return sizes.get(value.name or "", 0) * (2 if narrow else 1)


def _before(graph: ir.Graph, anchors: Collection[ir.Node]) -> set[ir.Node]:
    """The nodes that make what the anchors read."""
    stack = [value for node in anchors for value in node_reads(node)]
    found: set[ir.Node] = set()
    while stack:
        node = stack.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            stack.extend(node_reads(node))
    return found


def _alive(
    graph: ir.Graph,
    sizes: Mapping[str, int],
    anchors: Collection[ir.Node],
    run: Collection[ir.Node] | None,
) -> tuple[int, int]:
    """(the most bytes of activations alive at once, the most at one of the nodes that read a weight to be quantized).

    Only of the nodes ``run``; None: all of them.
    """
    nodes = [node for node in graph if run is None or node in run]
    readers = Counter(value for node in nodes for value in node_reads(node))
    if run is None:
        readers.update(graph.outputs)
    alive: dict[ir.Value, int] = {}
    now = peak = border = 0
    for node in nodes:
        if node in anchors:
            border = max(border, now)
        for value in node.outputs:
            alive[value] = 0 if is_constant(value) else sizes.get(value.name or "", 0)
            now += alive[value]
        peak = max(peak, now)
        for value in node_reads(node):
            readers[value] -= 1
            if readers[value] == 0:
                now -= alive.pop(value, 0)
    return peak, border
