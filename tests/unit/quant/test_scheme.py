from dataclasses import replace
from typing import Any

import pytest

from qcompiler.errors import SchemeError
from qcompiler.quant.scheme import Granularity, GroupFallback, QuantScheme, fit_group

ROWS = QuantScheme(4, False, Granularity.GROUP, 64, "float16", group_axis="output")


def test_widths_and_groups_of_a_row() -> None:
    group = QuantScheme(4, False, Granularity.GROUP, 64)
    assert (group.group_width(200), group.groups(200), group.scale_shape(7, 200)) == (64, 4, (7, 4))
    channel = QuantScheme(8, True, Granularity.CHANNEL)
    assert (channel.group_width(200), channel.groups(200), channel.scale_shape(7, 200)) == (200, 1, (7, 1))
    assert QuantScheme(8, True, Granularity.TENSOR).scale_shape(7, 200) == (1, 1)
    assert ROWS.scale_shape(200, 7) == (4, 7)


def test_labels() -> None:
    assert QuantScheme(4, False, Granularity.GROUP, 64).label == "int4 g64 asym"
    assert QuantScheme(8, True, Granularity.CHANNEL).label == "int8 channel sym"
    assert ROWS.label == "int4 g64-out asym" and ROWS.turned.label == "int4 g64 asym"
    assert ROWS.turned.turned == ROWS


def test_stored_bytes_count_codes_scales_and_zero_points() -> None:
    scheme = QuantScheme(4, False, Granularity.GROUP, 32, "float16")
    # 96 weights a row: 48 bytes of codes, 3 scales of 2 bytes, 3 zero points in 2 bytes
    assert scheme.stored_bytes(10, 96) == 10 * (48 + 6 + 2)
    assert scheme.bits_per_weight(10, 96) == pytest.approx(8 * 56 / 96)
    # a short last group is stored whole: 4 groups for 100 weights
    assert scheme.stored_bytes(1, 100) == 64 + 8 + 2
    assert QuantScheme(8, True, Granularity.TENSOR).stored_bytes(10, 96) == 960 + 4
    assert QuantScheme(3, True, Granularity.CHANNEL).stored_bytes(2, 8) == 2 * (
        4 + 4
    )  # three bits are stored in four
    one = QuantScheme(1, False, Granularity.GROUP, 32, "float16")
    assert one.stored_bytes(10, 96) == 10 * (24 + 6 + 1)  # one bit is stored in two
    assert ROWS.stored_bytes(128, 10) == 10 * (64 + 4 + 1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((5, True, Granularity.GROUP, 32), "bits: 5"),
        ((4, True, Granularity.GROUP, None), "group_size: None"),
        ((4, True, Granularity.GROUP, 0), "group_size: 0 .* a positive number, channel or tensor"),
        ((4, True, Granularity.GROUP, -16), "group_size: -16"),
        ((4, True, Granularity.CHANNEL, 32), "group_size: 32 has no meaning"),
        ((4, True, Granularity.GROUP, 32, "float64"), "scale_dtype: float64"),
        ((1, True, Granularity.GROUP, 32), "bits: 1 has no middle .* set symmetric: false"),
    ],
)
def test_what_cannot_be_stored_is_refused(arguments: tuple[object, ...], named: str) -> None:
    with pytest.raises(SchemeError, match=named):
        QuantScheme(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        {"granularity": Granularity.CHANNEL, "group_size": None},
        {"symmetric": True, "dtype": "nf4"},
        {"two_level": True},
    ],
)
def test_groups_of_rows_are_of_integers_of_one_level(other: dict[str, Any]) -> None:
    with pytest.raises(SchemeError, match="group_axis: output is for groups of integers"):
        replace(ROWS, **other)
    with pytest.raises(SchemeError, match="group_axis: rows is not supported; use one of input, output"):
        replace(ROWS, group_axis="rows")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("k", "asked", "used"),
    [(128, 64, 64), (96, 64, 32), (80, 128, 16), (100, 64, 64), (8, 32, 32), (192, 128, 64), (72, 48, 24)],
)
def test_adjust_takes_the_largest_smaller_group_that_divides_k(k: int, asked: int, used: int) -> None:
    scheme = QuantScheme(4, False, Granularity.GROUP, asked)
    fitted, reason = fit_group(scheme, (10, k), GroupFallback.ADJUST, "w")
    assert fitted.group_size == used
    assert (reason is None) == (k % asked == 0)


@pytest.mark.parametrize("size", [1, 48, 512])
def test_which_groups_there_are_is_for_the_target_to_say(size: int) -> None:
    assert QuantScheme(4, True, Granularity.GROUP, size).groups(1024) == -(-1024 // size)


def test_pad_keeps_the_group_and_says_so() -> None:
    scheme = QuantScheme(4, False, Granularity.GROUP, 64)
    fitted, reason = fit_group(scheme, (10, 96), GroupFallback.PAD, "w")
    assert fitted == scheme
    assert reason == "group_size 64 does not divide K=96: the last group holds 32 weights"


def test_groups_of_rows_are_fitted_to_their_number() -> None:
    assert fit_group(ROWS, (128, 90), GroupFallback.ERROR, "w") == (ROWS, None)
    fitted, reason = fit_group(ROWS, (96, 128), GroupFallback.ADJUST, "w")
    assert (fitted.group_size, reason) == (32, "group_size 64 does not divide N=96: 32 used")


def test_error_names_the_layer_and_the_way_out() -> None:
    scheme = QuantScheme(4, False, Granularity.GROUP, 64)
    with pytest.raises(SchemeError, match=r"layers/fc: K=96 is not a multiple of group_size=64.*adjust"):
        fit_group(scheme, (10, 96), GroupFallback.ERROR, "layers/fc")
    assert fit_group(scheme, (10, 128), GroupFallback.ERROR, "w") == (scheme, None)
