"""Windows of a convolution: multiplied with its kernel laid flat they are what Conv computes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from qcompiler.calibration.windows import PLACES, Window
from qcompiler.errors import CalibrationError

SHAPES = [
    ("plain", (5, 3, 3, 3), (2, 3, 7, 8), {}),
    ("strides", (4, 3, 3, 2), (1, 3, 9, 8), {"strides": [2, 3]}),
    ("pads", (4, 2, 3, 3), (1, 2, 5, 6), {"pads": [1, 0, 2, 1]}),
    ("dilations", (4, 2, 3, 3), (1, 2, 9, 9), {"dilations": [2, 3]}),
    ("same upper", (4, 2, 3, 4), (1, 2, 6, 7), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    ("same lower", (4, 2, 2, 4), (1, 2, 6, 7), {"auto_pad": "SAME_LOWER"}),
    ("valid", (4, 2, 2, 2), (1, 2, 4, 4), {"auto_pad": "VALID"}),
    ("groups", (6, 2, 3, 3), (2, 6, 5, 5), {"group": 3, "pads": [1, 1, 1, 1]}),
    ("depthwise", (4, 1, 3, 3), (1, 4, 6, 6), {"group": 4}),
    ("one axis", (4, 3, 5), (2, 3, 11), {"strides": [2]}),
    ("three axes", (2, 2, 2, 2, 2), (1, 2, 4, 3, 3), {}),
]


@pytest.mark.parametrize(
    ("kernel", "shape", "attributes"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES]
)
def test_windows_times_the_kernel_are_the_convolution(
    kernel: tuple[int, ...], shape: tuple[int, ...], attributes: dict[str, object]
) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(kernel).astype(np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    (wanted,) = ReferenceEvaluator(node).run(None, {"x": x, "w": w})
    window = Window.of(ir.from_proto(node), kernel)
    rows = window.rows(x)
    flat = w.reshape(window.groups, kernel[0] // window.groups, -1)
    found = np.einsum("grk,gnk->rgn", rows, flat).reshape(len(x), *wanted.shape[2:], kernel[0])
    # sums of at most 27 products of order 1 in float32
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), wanted, rtol=0, atol=27 * 1.2e-6)


def test_of_many_places_some_are_taken_evenly() -> None:
    x = np.broadcast_to(
        np.arange(200, dtype=np.float32), (1, 1, 200, 200)
    ).copy()  # each place says its column
    (rows,) = Window((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))).rows(x)
    assert 0.9 * PLACES < len(rows) <= PLACES
    counts, _ = np.histogram(rows, bins=10, range=(0, 200))
    assert (
        counts.min() > 0.8 * counts.max()
    )  # no column is left out, though steps over rows are as long as one


def test_an_input_smaller_than_the_kernel_has_no_windows() -> None:
    assert Window((3, 3), (1, 1), (1, 1), ((0, 0), (0, 0))).rows(np.zeros((1, 2, 2, 5))).shape == (1, 0, 18)


@pytest.mark.parametrize("shape", [(1, 4, 9), (1, 5, 9, 9)], ids=["rank", "channels"])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CalibrationError, match="a multiple of 2"):
        Window((3, 3), (1, 1), (1, 1), ((0, 0), (0, 0)), groups=2).rows(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (1, 2, 0, 5)])
def test_of_no_images_there_are_no_windows(shape: tuple[int, ...]) -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[2, 2, 2, 2])
    rows = Window.of(ir.from_proto(node), (4, 2, 3, 3)).rows(np.zeros(shape, np.float32))
    assert rows.shape == (1, 0, 18)
