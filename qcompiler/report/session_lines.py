"""What a session does with a model, in a few lines below its inspection."""

from qcompiler.report.running import FloatIsland, RunningModel

_CONTRIB = "com.microsoft::"
OPERATORS = 6  # that are named with their share of the time
INPUTS = 4  # that are named
NAMED = 3  # nodes of an island


def session_lines(running: RunningModel) -> list[str]:
    """Where time goes, and every kind of float island between integers."""
    fed = ", ".join(f"{name} {shape}" for name, shape in list(running.inputs.items())[:INPUTS])
    more = len(running.inputs) - INPUTS
    fed += f" and {more} other inputs" if more > 0 else ""
    library = "with our operators" if running.library else "without our operators, which are not built here"
    slowest = [
        f"{100 * microseconds / (running.microseconds or 1):.0f} % in {count} {op.removeprefix(_CONTRIB)}"
        for op, (count, microseconds) in list(running.operators.items())[:OPERATORS]
    ]
    lines = [
        f"runs on {', '.join(running.providers)} {library}: {running.nodes} nodes, {running.microseconds / 1000:.3g} ms for {fed}",
        f"time: {', '.join(slowest)}",
    ]
    kinds: dict[tuple[str, ...], list[FloatIsland]] = {}
    for island in running.islands:
        kinds.setdefault((island.reason, *island.ops), []).append(island)
    for (reason, *ops), islands in kinds.items():
        named = ", ".join(islands[0].nodes[:NAMED]) + (" .." if len(islands[0].nodes) > NAMED else "")
        times = f"{len(islands)} times, " if len(islands) > 1 else ""
        share = 100 * sum(island.share for island in islands)
        lines.append(
            f"float island, {times}{share:.1f} % of the time: {', '.join(ops)} between integers ({named}): {reason}"
        )
    return lines
