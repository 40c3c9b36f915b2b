"""First classes of a classifier beside its reference's, counted by hand."""

import numpy as np

from qcompiler.report.confusion import Confusion, ConfusionCounter

FEED = {"x": np.zeros((1, 1))}


def scores(*firsts: int) -> np.ndarray:
    """A row for each: three classes, this one the first."""
    return np.eye(3, dtype=np.float32)[list(firsts)]


def test_two_rows_one_of_which_moves() -> None:
    counter = ConfusionCounter()
    counter.watch(FEED, "y", scores(0, 1), scores(0, 2))
    assert counter.found() == Confusion("y", 2, 1, [1, 2], [[0, 1], [0, 0]], [(1, 2, 1)])


def test_over_feeds_the_most_frequent_pair_comes_first() -> None:
    counter = ConfusionCounter()
    counter.watch(FEED, "y", scores(0, 1, 1), scores(1, 2, 1))
    counter.watch(FEED, "y", scores(1, 2), scores(2, 2))
    found = counter.found()
    assert found is not None and (found.rows, found.agreeing) == (5, 2)
    assert found.pairs == [(1, 2, 2), (0, 1, 1)]
    assert (found.classes, found.counts) == ([0, 1, 2], [[0, 1, 0], [0, 1, 2], [0, 0, 1]])


def test_where_all_agree_there_are_no_pairs() -> None:
    counter = ConfusionCounter()
    counter.watch(FEED, "y", scores(0, 2), scores(0, 2))
    assert counter.found() == Confusion("y", 2, 2, [0, 2], [[1, 0], [0, 1]], [])


def test_the_first_output_of_classes_alone_is_counted() -> None:
    counter = ConfusionCounter()
    assert counter.found() is None
    counter.watch(FEED, "map", np.zeros((1, 3, 2)), np.zeros((1, 3, 2)))
    counter.watch(FEED, "ids", np.zeros((1, 3), np.int64), np.zeros((1, 3), np.int64))
    counter.watch(FEED, "one", np.zeros((2, 1)), np.zeros((2, 1)))
    assert counter.found() is None
    counter.watch(FEED, "first", scores(0), scores(1))
    counter.watch(FEED, "second", scores(2), scores(2))
    found = counter.found()
    assert found is not None and (found.output, found.rows) == ("first", 1)
