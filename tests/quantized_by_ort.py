"""Models that ONNX Runtime's own quantizers made of a small convolutional one, and data for both."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization

from tests.small_models import Array, make_model, save_model, weight

_GRAPH = """g (float[B,3,12,12] x) => (float[B,10] y) {
    [first] c = Conv<pads=[1,1,1,1]>(x, k, b)
    [clamp] r = Relu(c)
    [pool] p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    [second] d = Conv<pads=[1,1,1,1]>(p, k2, b2)
    [clamp2] s = Relu(d)
    [flat] f = Flatten(s)
    [last] y = Gemm(f, w, bias)
}"""
FORMS = ("QDQ", "QOperator", "dynamic")


def float_model() -> onnx.ModelProto:
    """x [B, 3, 12, 12] -> Conv, Relu, MaxPool, Conv, Relu, Gemm -> y [B, 10]."""
    constants = {
        "k": weight(8, 3, 3, 3, scale=0.3), "b": weight(8, seed=1), "k2": weight(8, 8, 3, 3, seed=2, scale=0.2),
        "b2": weight(8, seed=4), "w": weight(288, 10, seed=3), "bias": weight(10, seed=5),
    }  # fmt: skip
    return make_model(_GRAPH, constants)


def images(count: int, seed: int = 0) -> list[dict[str, Array]]:
    """Feeds of four images."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((4, 3, 12, 12)).astype(np.float32)} for _ in range(count)]


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Hands out feeds."""

    def __init__(self, feeds: Sequence[dict[str, Array]]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._left, None)


def quantized(folder: Path, form: str) -> tuple[Path, Path]:
    """(the float model, what ONNX Runtime's quantizer makes of it), as files."""
    source, made = save_model(float_model(), folder), folder / f"{form}.onnx"
    if form == "dynamic":
        quantization.quantize_dynamic(source, made)
    else:
        quantization.quantize_static(
            source, made, Reader(images(3)), quant_format=quantization.QuantFormat[form]
        )
    return source, made
