"""Activation functions that our products take in: their names, their formulas, and their nodes in an operator's body.

Relu(v)      = max(v, 0)
Gelu(v)      = v (1 + erf(v / sqrt 2)) / 2
FastGelu(v)  = v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) / 2
QuickGelu(v) = v / (1 + exp(-alpha v)); silu with alpha 1
                                                        (Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2)
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Kind = Literal["Relu", "Gelu", "FastGelu", "QuickGelu"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ALPHA = "alpha"
"""The attribute of QuickGelu, a float."""
ROOT_HALF = math.sqrt(0.5)
SLOPE = math.sqrt(2 / math.pi)
CUBIC = 0.044715

_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class Activation:
    """One of them; ``alpha`` is QuickGelu's."""

    kind: Kind
    alpha: float = 1.0

    def of(self, v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The function of each number of ``v``, of any shape."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.kind == "Relu":
                return np.maximum(v, 0)
            if self.kind == "Gelu":
                return np.asarray(0.5 * v * (1 + _erf(v * ROOT_HALF)))
            if self.kind == "FastGelu":
                return np.asarray(0.5 * v * (1 + np.tanh(SLOPE * (v + CUBIC * v**3))))
            return np.asarray(v / (1 + np.exp(-self.alpha * v)))


def body_nodes(kind: Kind) -> str:
    """ONNX text of opset 13 and newer: nodes that make ``y`` of ``y_0``, float32."""
    return {
        "Relu": "y = Relu (y_0)",
        "Gelu": f"""f_root = Constant <value_float = {math.sqrt(2)!r}> ()
    f_one = Constant <value_float = 1.0> () f_half = Constant <value_float = 0.5> ()
    scaled = Div (y_0, f_root) erf = Erf (scaled) more = Add (erf, f_one) double = Mul (y_0, more) y = Mul (double, f_half)""",
        "FastGelu": f"""f_slope = Constant <value_float = {SLOPE!r}> () f_cubic = Constant <value_float = {CUBIC!r}> ()
    f_three = Constant <value_float = 3.0> () f_one = Constant <value_float = 1.0> () f_half = Constant <value_float = 0.5> ()
    cube = Pow (y_0, f_three) bend = Mul (cube, f_cubic) bent = Add (y_0, bend) inner = Mul (bent, f_slope) tanh = Tanh (inner)
    more = Add (tanh, f_one) halved = Mul (y_0, f_half) y = Mul (halved, more)""",
        "QuickGelu": f"""factor = Constant <value_float: float = @{ALPHA}> ()
    steep = Mul (y_0, factor) sigmoid = Sigmoid (steep) y = Mul (y_0, sigmoid)""",
    }[kind]
