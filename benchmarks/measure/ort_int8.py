"""ONNX Runtime's own int8 quantizers, as its documentation calls them: preprocessed, then static with data or dynamic without."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

DYNAMIC = "dynamic"


class _Rows(CalibrationDataReader):  # type: ignore[misc]
    """Feeds of a folder, or the rows of a file's arrays one by one."""

    def __init__(self, data: Path) -> None:
        self._feeds = iter(_feeds(data))

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self._feeds, None)


def _feeds(data: Path) -> Iterator[dict[str, npt.NDArray[Any]]]:
    if data.is_dir():
        for path in sorted(data.glob("*.npz")):
            with np.load(path) as arrays:
                yield {name: arrays[name] for name in arrays.files}
        return
    with np.load(data) as arrays:
        whole = {name: arrays[name] for name in arrays.files}
    for index in range(len(next(iter(whole.values())))):
        yield {name: array[index : index + 1] for name, array in whole.items()}


def quantize(model: Path, data: Path, output: Path, method: str, shapes: bool = True) -> None:
    """Write the quantized model.

    Args:
        model: float.
        data: .npz of arrays under the inputs' names, a sample a row; or a folder of such, each a feed.
        output: file to write.
        method: "MinMax", "Entropy" or "Percentile": static, uint8 activations and int8 weights, a scale for each
            channel, in the form of QuantizeLinear and DequantizeLinear; "dynamic": scales of activations in every run.
        shapes: whether ONNX Runtime's symbolic shape inference prepares it, which gives up on some models (PP-OCRv4).
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=not shapes)
        if method == DYNAMIC:
            quantize_dynamic(prepared, output, per_channel=True)
            return
        quantize_static(
            prepared,
            output,
            _Rows(data),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )
