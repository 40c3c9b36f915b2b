"""Biases in int32: nearest codes, what is added by a correction, and scales that leave room."""

import numpy as np

from qcompiler.quant.bias_codes import LARGEST, bias_codes, coarser_codes, moved_codes, scales_with_room


def test_codes_are_the_nearest() -> None:
    steps = np.array([0.5, 2, 1e-3], np.float32)
    codes = bias_codes(np.array([0.74, -3.1, 5.0]), steps)
    assert codes.dtype == np.int32 and codes.tolist() == [1, -2, 5000]


def test_what_is_added_are_whole_steps_as_far_as_int32_goes() -> None:
    last = np.iinfo(np.int32).max
    codes = np.array([3, last - 1, -5], np.int32)
    moved, added = moved_codes(codes, np.array([0.9, 40.0, -0.2]), np.array([0.5, 2.0, 1.0]))
    assert moved.tolist() == [5, last, -5]
    assert added.tolist() == [1.0, 2.0, 0.0]


def test_scales_grow_where_the_bias_does_not_fit_and_codes_follow() -> None:
    scales = np.array([1e-12, 0.25])
    wide = scales_with_room(np.array([4.0, 4.0]), 0.5, scales)
    assert wide[1] == 0.25 and 4.0 / (0.5 * wide[0]) <= LARGEST * (
        1 + 2.0**-23
    )  # float32's rounding of the scale
    codes = np.array([[100, -100], [100, -100]], np.int8)
    assert coarser_codes(codes, scales, wide).tolist() == [[0, 0], [100, -100]]
    one = scales_with_room(np.array([4.0, 400.0]), 0.5, np.array(1e-12))
    assert one.shape == () and 400.0 / (0.5 * one) <= LARGEST * (1 + 2.0**-23)
