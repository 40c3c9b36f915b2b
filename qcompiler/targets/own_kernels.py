"""Target `qcompiler`: as `ort`, with products on our own kernels.

The saved model carries the stock node as the body of each of our operators, so it also runs where our library is not registered. Both
ways are tried after saving. Without bodies (``--no-function-body``) it needs the library, and only that way is tried; so does one whose
weights lie as our kernels read them (``--mapped-weights``), which has no bodies.
"""

from pathlib import Path

from qcompiler.graph import (
    own_dynamic_matmul,
    own_gather_nbits,
    own_matmul_codebook,
    own_matmul_nbits,
    own_qlinear_matmul,
    sparse_matmul,
)
from qcompiler.pass_manager import NamedPass
from qcompiler.passes.drop_operator_bodies import DropOperatorBodies
from qcompiler.passes.fuse_followers import FuseFollowers
from qcompiler.passes.join_products import JoinProducts
from qcompiler.passes.lay_out_for_kernels import LayOutForKernels
from qcompiler.passes.lower_to_integers import LowerToIntegers
from qcompiler.passes.store_three_bits import StoreThreeBits
from qcompiler.passes.use_own_codebooks import UseOwnCodebooks
from qcompiler.passes.use_own_gathers import UseOwnGathers
from qcompiler.passes.use_own_kernels import UseOwnKernels
from qcompiler.quant.scheme import QuantScheme
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime import register
from qcompiler.targets import ort
from qcompiler.targets.running_nodes import verify_loads, verify_running

WITH_KERNELS = (
    own_dynamic_matmul.OP,
    own_gather_nbits.OP,
    own_matmul_codebook.OP,
    *own_matmul_nbits.PRODUCTS,
    own_qlinear_matmul.OP,
    sparse_matmul.OP,
)
"""Operators of our domain that the library has; the others run as their bodies everywhere."""


def remark(scheme: QuantScheme, gathered: bool, outliers: bool) -> list[str]:
    """As for the target ``ort``, but of outliers nothing: they have a kernel here."""
    return ort.remark(scheme, gathered, outliers=False)


def lowering(recipe: Recipe) -> list[NamedPass]:
    """Passes from the middle form."""
    return [
        *ort.lowering_to_stock(recipe, LowerToIntegers(rows=False)),
        NamedPass(
            "use_own_kernels", UseOwnKernels(), "late: it takes over what became MatMulNBits, bias and all"
        ),
        NamedPass(
            "use_own_codebooks",
            UseOwnCodebooks(recipe.accuracy_level),
            "beside it: it takes over what became MatMulBnb4",
        ),
        NamedPass(
            "use_own_gathers", UseOwnGathers(), "beside them: it takes over what became GatherBlockQuantized"
        ),
        NamedPass(
            "store_three_bits", StoreThreeBits(), "after them: it shortens what our operators took over"
        ),
        ort.leave_rounding(),
        NamedPass("join_products", JoinProducts(), "after it: what it joins are nodes of our operators"),
        NamedPass(
            "fuse_followers", FuseFollowers(), "after that: a gate's two products are one node by then"
        ),
    ]


def lowering_without_bodies(recipe: Recipe) -> list[NamedPass]:
    """The same, and bodies that the library makes superfluous left out."""
    return [
        *lowering(recipe),
        NamedPass(
            "drop_operator_bodies",
            DropOperatorBodies(WITH_KERNELS),
            "last: the passes before it provide bodies with the operators",
        ),
    ]


def lowering_mapped(recipe: Recipe) -> list[NamedPass]:
    """The same, and weights in the kernels' own order."""
    return [
        *lowering_without_bodies(recipe),
        NamedPass(
            "lay_out_for_kernels",
            LayOutForKernels(),
            "last: the passes before it read weights row by row, and no body reads what it writes",
        ),
    ]


def verify(model: Path, passes: list[NamedPass]) -> dict[str, int]:
    """Count what runs on our kernels, and on ONNX Runtime's, after its optimizer.

    Raises:
        PromiseError, ResourceError: see ``verify_running``; also where this installation has no library of ours.
        PromiseError: the model does not load without the library.
    """
    running = verify_with_library(model, passes)
    verify_loads(model, "without our library")
    return running


def verify_with_library(model: Path, passes: list[NamedPass]) -> dict[str, int]:
    """The same of a model without bodies, which loads with the library alone.

    Raises:
        PromiseError, ResourceError: see ``verify_running``; also where this installation has no library of ours.
    """
    return verify_running(model, passes, register)
