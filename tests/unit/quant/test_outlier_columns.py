"""Columns in floats beside codes: what they mean row by row, and what is no such part."""

import numpy as np
import pytest

from qcompiler.errors import SchemeError
from qcompiler.quant.outlier_columns import OutlierColumns, columns_label
from tests.small_models import weight


def test_rows_among_zeros() -> None:
    values = weight(6, 10)
    part = OutlierColumns.of(values, np.array([0, 7]), "float32")
    expected = np.zeros_like(values)
    expected[:, [0, 7]] = values[:, [0, 7]]
    assert part.shape == (6, 10) and part.count == 2
    for rows in (slice(None), slice(2, 5), slice(4, 40), slice(3, 3)):
        assert np.array_equal(part.dense(rows), expected[rows])
    assert part.stored_bytes == 2 * (6 * 4 + 8)
    assert (columns_label(1), part.label) == ("1 outlier column", "2 outlier columns")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([1, 1], r"places: must rise, from 0 to 3"),
        ([2, 1], r"places: must rise"),
        ([0, 4], r"places: must rise"),
        ([-1, 2], r"places: must rise"),
        ([1], r"places: int64\(1,\) for values \(3, 2\)"),
    ],
)
def test_places_are_columns_in_order(places: list[int], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        OutlierColumns(weight(3, 2), np.array(places), 4, "float32")


def test_values_are_numbers_that_their_type_holds() -> None:
    places = np.array([0, 2])
    with pytest.raises(SchemeError, match="values: values that float16 does not hold"):
        OutlierColumns(weight(3, 2), places, 4, "float16")
    with pytest.raises(SchemeError, match="values: float64"):
        OutlierColumns(weight(3, 2, dtype=np.float64), places, 4, "float32")
    with pytest.raises(SchemeError, match="at least one"):
        OutlierColumns(weight(3, 0), places[:0], 4, "float32")
