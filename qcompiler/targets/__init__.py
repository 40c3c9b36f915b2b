"""The targets: one file each, one row each in the table below."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qcompiler.errors import RecipeError
from qcompiler.nearest import nearest
from qcompiler.pass_manager import NamedPass
from qcompiler.quant.scheme import QuantScheme
from qcompiler.recipe.recipe import Recipe
from qcompiler.targets import ort, own_kernels


@dataclass(frozen=True)
class Target:
    """Where a compiled model runs.

    Attributes:
        supports: None, or why a scheme cannot be stored for it.
        remark: what a user should know of how a scheme is stored; the others: whether rows of the weight are gathered, and
            whether outliers stand beside it.
        lowering: passes from the middle form to the target's operators.
        verify: reload the saved model and raise PromiseError unless every quantized node runs as it should.
    """

    name: str
    description: str
    supports: Callable[[QuantScheme], str | None]
    remark: Callable[[QuantScheme, bool, bool], list[str]]
    lowering: Callable[[Recipe], list[NamedPass]]
    verify: Callable[[Path, list[NamedPass]], dict[str, int]]


TARGETS = (
    Target(
        "ort",
        "ONNX Runtime with its own operators (com.microsoft::MatMulNBits, MatMulBnb4)",
        ort.supports,
        ort.remark,
        ort.lowering,
        ort.verify,
    ),
    Target(
        "qcompiler",
        "ONNX Runtime with our operators (ai.qcompiler::MatMulNBits); without our library the same file runs on its own",
        ort.supports,
        ort.remark,
        own_kernels.lowering,
        own_kernels.verify,
    ),
)


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    for target in TARGETS:
        if target.name == name:
            return target
    raise RecipeError(f"target {name!r}: not known; {nearest(name, [target.name for target in TARGETS])}")
