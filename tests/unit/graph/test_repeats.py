"""Stretches that repeat."""

from qcompiler.graph.repeats import Repeats, find_repeats


def _narrow_everywhere(place: int) -> int:
    return 0


def test_a_period_between_other_elements() -> None:
    assert find_repeats("s" + "qkvoud" * 3 + "h", _narrow_everywhere) == [Repeats(1, 6, 3)]


def test_a_period_of_like_elements_is_the_whole_of_it() -> None:
    assert find_repeats("qqqqud" * 4, _narrow_everywhere) == [Repeats(0, 6, 4)]


def test_two_parts_of_a_model_have_periods_of_their_own() -> None:
    found = find_repeats("abc" * 4 + "x" + "abdec" * 3, _narrow_everywhere)
    assert [(each.period, each.count) for each in found] == [(3, 4), (5, 3)]


def test_it_begins_where_the_graph_is_narrow() -> None:
    # Narrow before each a: b|ab|ab|ab|a, not ba|ba|ba|ba.
    found = find_repeats("babababa", lambda place: 1 if place % 2 else 3)
    assert found == [Repeats(1, 2, 3)]


def test_a_chain_of_single_products_has_none() -> None:
    assert find_repeats("abcd", _narrow_everywhere) == []
