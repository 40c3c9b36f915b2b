"""The targets: one file each, one row each in the table below."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from qcompiler.errors import RecipeError
from qcompiler.nearest import nearest
from qcompiler.pass_manager import NamedPass
from qcompiler.quant.scheme import QuantScheme
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime import library_path
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
        require: raises ResourceError where this installation lacks what ``verify`` needs, before any work is done.
        without_bodies: the same target, its models without the bodies of our operators; None where they have none.
        mapped: the same, and weights in the kernels' own order, used where the file is mapped; None where kernels have none.
    """

    name: str
    description: str
    supports: Callable[[QuantScheme], str | None]
    remark: Callable[[QuantScheme, bool, bool], list[str]]
    lowering: Callable[[Recipe], list[NamedPass]]
    verify: Callable[[Path, list[NamedPass]], dict[str, int]]
    require: Callable[[], object] = lambda: None
    without_bodies: "Target | None" = None
    mapped: "Target | None" = None


_OWN_KERNELS = Target(
    "qcompiler",
    "ONNX Runtime with our operators (ai.qcompiler::MatMulNBits and others); without our library the same file runs on its own",
    ort.supports,
    own_kernels.remark,
    own_kernels.lowering,
    own_kernels.verify,
    library_path,
)

TARGETS = (
    Target(
        "ort",
        "ONNX Runtime with its own operators (com.microsoft::MatMulNBits, MatMulBnb4)",
        ort.supports,
        ort.remark,
        ort.lowering,
        ort.verify,
    ),
    replace(
        _OWN_KERNELS,
        without_bodies=replace(
            _OWN_KERNELS,
            lowering=own_kernels.lowering_without_bodies,
            verify=own_kernels.verify_with_library,
        ),
        mapped=replace(
            _OWN_KERNELS,
            lowering=own_kernels.lowering_mapped,
            verify=own_kernels.verify_with_library,
        ),
    ),
)


def find_target(name: str, function_body: bool = True, mapped_weights: bool = False) -> Target:
    """The target of that name.

    Args:
        function_body: whether models carry the bodies of our operators.
        mapped_weights: whether weights are in the kernels' own order; such models have no bodies, whatever ``function_body`` is.

    Raises:
        RecipeError: there is none (names the nearest), or its models have no bodies to leave out, or its kernels no such order.
    """
    found = next((target for target in TARGETS if target.name == name), None)
    if found is None:
        raise RecipeError(f"target {name!r}: not known; {nearest(name, [target.name for target in TARGETS])}")
    if mapped_weights:
        if found.mapped is None:
            names = ", ".join(target.name for target in TARGETS if target.mapped is not None)
            raise RecipeError(
                f"target {name}: --mapped-weights writes weights in the order of our library's kernels, and models for {name} do "
                f"not use it; drop the option, or take --target {names}"
            )
        return found.mapped
    if function_body:
        return found
    if found.without_bodies is None:
        names = ", ".join(target.name for target in TARGETS if target.without_bodies is not None)
        raise RecipeError(
            f"target {name}: --no-function-body leaves out what runs where our library is not, and models for {name} do not "
            f"use it; drop the option, or take --target {names}"
        )
    return found.without_bodies
