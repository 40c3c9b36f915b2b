"""The trade of a mixed compile as rows of a table: the weights' size against the loss that is predicted at it."""

from qcompiler.passes.assign_bits import MixedResult

ROWS = 9  # of the table in the summary


def trade_rows(mixed: MixedResult) -> list[tuple[int, float, bool]]:
    """(bytes, predicted loss, whether it was chosen): some points of the trade, from its smallest to its largest, and the choice."""
    points = sorted(mixed.trade)
    last = len(points) - 1
    places = (
        dict.fromkeys(round(i * last / (ROWS - 1)) for i in range(ROWS)) if last >= ROWS else range(last + 1)
    )
    chosen = (mixed.bytes, mixed.loss)
    found = {points[i]: False for i in places} | {chosen: True}
    return [(size, loss, taken) for (size, loss), taken in sorted(found.items())]
