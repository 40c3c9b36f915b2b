"""ONNX Runtime's own int8 quantizers, as its documentation calls them: preprocessed, then static with data or dynamic without."""

import tempfile
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
    """An array's rows, one by one, under the name of the model's input."""

    def __init__(self, name: str, array: npt.NDArray[Any]) -> None:
        self._feeds = ({name: row[None]} for row in array)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self._feeds, None)


def quantize(model: Path, data: Path, output: Path, method: str) -> None:
    """Write the quantized model.

    Args:
        model: float, of one input.
        data: .npz of one array under the input's name, a sample a row.
        output: file to write.
        method: "MinMax", "Entropy" or "Percentile": static, uint8 activations and int8 weights, a scale for each
            channel, in the form of QuantizeLinear and DequantizeLinear; "dynamic": scales of activations in every run.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(model), str(prepared))
        if method == DYNAMIC:
            quantize_dynamic(prepared, output, per_channel=True)
            return
        with np.load(data) as arrays:
            (name,) = arrays.files
            rows = _Rows(name, arrays[name])
        quantize_static(
            prepared,
            output,
            rows,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )
