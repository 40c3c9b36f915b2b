"""lines: one for each reason, however many layers have it."""

from qcompiler.graph.left_alone import LeftAlone, lines


def test_other_reasons_are_told_beside_the_first() -> None:
    left = [
        LeftAlone("heads before a", "{} is an output of the model", "p"),
        LeftAlone("heads before b", "{} is used more than once", "w"),
        LeftAlone("heads before c", "{} is an output of the model", "q"),
    ]
    assert lines(left) == [
        "heads before a: p is an output of the model (2 such)",
        "heads before b: w is used more than once",
    ]
