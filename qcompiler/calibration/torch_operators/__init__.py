"""What each ONNX operator computes, in torch: the table of ``calibration.executor``.

Importing this package imports torch. An operator is one function ``(call, *inputs) -> output or outputs`` and one row in the table of its
file. A missing input is None. Tensors that say how (shapes, axes, bounds of slices, repeats) are on the CPU; ``HOST_INPUTS`` names them.
float16 and bfloat16 are computed in float32, as gradients of weights in 16 bits would vanish.
"""

from collections.abc import Callable
from typing import Any

from qcompiler.calibration.torch_operators import elementwise, products, reductions, selections, shapes

Operator = Callable[..., Any]

OPERATORS: dict[str, Operator] = {
    **elementwise.OPERATORS,
    **products.OPERATORS,
    **reductions.OPERATORS,
    **selections.OPERATORS,
    **shapes.OPERATORS,
}
"""By operator; one of another domain than ONNX's own as ``domain::operator``."""

HOST_INPUTS: dict[str, frozenset[int]] = {
    **reductions.HOST_INPUTS,
    **selections.HOST_INPUTS,
    **shapes.HOST_INPUTS,
}
"""The inputs of an operator that are read as plain numbers."""
