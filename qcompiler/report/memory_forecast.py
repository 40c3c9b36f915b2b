"""The peak of anonymous memory that a compile will need, before anything of size is computed.

The weights at work (``Plan.forecast_peak_bytes``) or, where a recipe calibrates, the activations of one sample if they take more; and the
border activations that are kept of all samples, up to the share of the limit past which they go to a file.
"""

from collections import Counter
from collections.abc import Collection, Mapping

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

BORDER_SHARE = 4
"""Border activations stay in memory up to a quarter of the limit."""
RUN_FACTOR = 5
"""Memory of a run over the activations alive at once: 4.8 measured (models.tiny_lm, windows of 512 and 1024), since ONNX Runtime's arena
grows by powers of two and the last segment's is still there when the next begins."""
BORDER_FACTOR = 2
"""What a segment reads and what it hands on are kept side by side."""
TUNED_BYTES = 4 * 9
"""Of each weight of a segment that is tuned: itself, its latent and its momentum, the values and their gradient, and the parts of a step
that are alive at once."""
GRADIENT_FACTOR = 2
"""Every activation of a tuned segment is kept for the backward run, and what torch keeps beside it (a mask, an inverse) takes as much."""


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
    feed = (
        example_feed(model, calibration.length) if feed is None else complete_feed(feed, input_specs(model))
    )
    sizes = activation_bytes(model, {name: array.shape for name, array in feed.items()})
    anchors = {use.top_level for planned in plan.quantized for use in planned.weight.uses}
    live, border = _alive(model.graph, sizes, anchors)
    tuned = _tuned_bytes(model, plan, sizes, anchors)
    # The float model's border activations go along where segments are tuned.
    streams = 2 if tuned else 1
    borders = BORDER_FACTOR * border * calibration.samples
    # A segment runs, then its weights are worked on, then tuned.
    work = max(weights, FIXED_BYTES + max(RUN_FACTOR * live, tuned))
    return work + streams * min(borders, limit // BORDER_SHARE)


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


def _alive(graph: ir.Graph, sizes: Mapping[str, int], anchors: Collection[ir.Node]) -> tuple[int, int]:
    """(the most bytes of activations alive at once, the most at one of the nodes that read a weight to be quantized)."""
    readers = Counter(value for node in graph for value in node_reads(node))
    readers.update(graph.outputs)
    alive: dict[ir.Value, int] = {}
    now = peak = border = 0
    for node in graph:
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
