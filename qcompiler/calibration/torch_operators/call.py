"""One node as an operator's function sees it: its attributes, and the version of its domain."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from qcompiler.errors import CalibrationError

_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float32,
    ir.DataType.BFLOAT16: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


@dataclass(frozen=True)
class Call:
    """A node, the opset version that says what it means, and what to do where it cannot be computed."""

    node: ir.Node
    version: int
    remedy: str

    @cached_property
    def where(self) -> str:
        """For messages."""
        return f"{self.node.name or self.node.outputs[0].name} ({self.node.op_type})"

    def integer(self, name: str, default: int) -> int:
        return self.node.attributes.get_int(name, default)

    def number(self, name: str, default: float) -> float:
        return self.node.attributes.get_float(name, default)

    def text(self, name: str, default: str) -> str:
        return self.node.attributes.get_string(name, default)

    def integers(self, name: str) -> list[int] | None:
        """None where it is not given."""
        return list(self.node.attributes[name].as_ints()) if name in self.node.attributes else None

    def has(self, name: str) -> bool:
        return name in self.node.attributes

    def refuse(self, what: str) -> CalibrationError:
        """The refusal of a form that is not written."""
        return CalibrationError(f"{self.where}: {what} cannot be differentiated here; {self.remedy}")

    def type_of(self, onnx_type: int) -> torch.dtype:
        """The torch type that stands for an ONNX one.

        Raises:
            CalibrationError: none does.
        """
        found = _TYPES.get(ir.DataType(onnx_type))
        if found is None:
            raise self.refuse(f"the type {ir.DataType(onnx_type).name}")
        return found

    def axes(self, operand: torch.Tensor | None) -> list[int] | None:
        """Axes from the second input or, in older opsets, the attribute; None where neither is given."""
        return self.integers("axes") if operand is None else [int(axis) for axis in operand.tolist()]


def as_tensor(array: npt.NDArray[Any], device: str = "cpu") -> torch.Tensor:
    """A tensor over the array's memory where torch has its type; 16-bit floats become float32. It must not be written to."""
    if array.dtype in (np.float16, ml_dtypes.bfloat16):
        array = array.astype(np.float32)
    elif array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)  # torch computes nothing with these
    if not array.flags.writeable:
        # torch warns about memory that must not be written, such as a mapped file; an alias through the buffer's
        # address keeps the file mapped and is not written to here.
        return _alias(array).to(device)
    return torch.from_numpy(array).to(device)


def _alias(array: npt.NDArray[Any]) -> torch.Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.from_numpy(array)
