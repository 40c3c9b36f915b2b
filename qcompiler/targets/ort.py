"""Target `ort`: stock ONNX Runtime operators, checked in the model that ONNX Runtime really runs.

Weights become com.microsoft::MatMulNBits and GatherBlockQuantized, those of a codebook MatMulBnb4. After saving, the model is loaded
once, the graph that ONNX Runtime's optimizer left is read back, and each quantized node must be in it.
"""

from pathlib import Path

from qcompiler.graph.kernel_node import BLOCK_SIZES
from qcompiler.graph.sparse_matmul import OP
from qcompiler.pass_manager import NamedPass
from qcompiler.passes.fuse_bias import FuseBias
from qcompiler.passes.leave_rounding_to_kernels import LeaveRoundingToKernels
from qcompiler.passes.lower_to_integers import LowerToIntegers
from qcompiler.passes.lower_to_matmul_bnb4 import LowerToMatMulBnb4
from qcompiler.passes.lower_to_matmul_bnb4 import stays_plain as codebook_stays_plain
from qcompiler.passes.lower_to_matmul_nbits import LowerToMatMulNBits
from qcompiler.passes.lower_with_offsets import LowerWithOffsets, stays_plain
from qcompiler.passes.part_float8_products import PartFloat8Products
from qcompiler.quant.scheme import QuantScheme
from qcompiler.recipe.recipe import Recipe
from qcompiler.targets.running_nodes import verify_running


def supports(scheme: QuantScheme) -> str | None:
    """None, or what MatMulNBits (MatMulBnb4 for a codebook) does not take."""
    if scheme.group_size is not None and scheme.group_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        if scheme.is_codebook:
            return f"group_size {scheme.group_size}: MatMulBnb4 has no such blocks; use one of {sizes}"
        return f"group_size {scheme.group_size}: MatMulNBits has no such blocks; use one of {sizes}, channel, tensor"
    return None


def remark(scheme: QuantScheme, gathered: bool, outliers: bool) -> list[str]:
    """Why a weight is stored, but read by no kernel of its own; a part of low rank is two stock MatMuls.

    Args:
        gathered: rows of the weight are looked up.
        outliers: some stand beside it.
    """
    plain = None
    if scheme.groups_rows:
        plain = (
            f"{scheme.label}: no kernel reads groups of rows; stored as plain ONNX, which ONNX Runtime unpacks in every run; "
            "set group_axis: input for one"
        )
    elif scheme.is_codebook:
        plain = codebook_stays_plain(scheme.dtype, gathered)
    elif scheme.has_float_zero_points or scheme.two_level:
        plain = stays_plain(scheme, gathered)
    sparse = f"outliers are added by {OP}, an operator of ours that runs as plain ONNX nodes: there is no stock kernel for it"
    return [line for line in (plain, sparse if outliers else None) if line is not None]


def lowering(recipe: Recipe) -> list[NamedPass]:
    """Passes from the middle form."""
    return [*lowering_to_stock(recipe, LowerToIntegers()), leave_rounding()]


def leave_rounding() -> NamedPass:
    """The pass behind all that find products by the rounding of their activations."""
    return NamedPass(
        "leave_rounding_to_kernels",
        LeaveRoundingToKernels(),
        "last of these: what is left of the rounding of activations are products whose kernels do it themselves",
    )


def lowering_to_stock(recipe: Recipe, integers: LowerToIntegers) -> list[NamedPass]:
    """Passes from the middle form, those that a target of ours shares; ``integers`` finds what multiplies in integers throughout."""
    return [
        NamedPass(
            "lower_to_integers",
            integers,
            "first: what it leaves of a weight of 8 bits the next ones take",
        ),
        NamedPass(
            "lower_to_matmul_nbits",
            LowerToMatMulNBits(recipe.accuracy_level),
            "ORT's own fusion of DequantizeLinear fixes accuracy_level 4, so the nodes are written by us",
        ),
        NamedPass(
            "lower_to_matmul_bnb4",
            LowerToMatMulBnb4(),
            "beside it: each takes the middle forms that its kernel reads",
        ),
        NamedPass(
            "lower_with_offsets",
            LowerWithOffsets(recipe.accuracy_level),
            "beside them: weights with float zero points or two-level scales, whose zero points no kernel takes fast",
        ),
        NamedPass(
            "part_float8_products",
            PartFloat8Products(),
            "beside them: what is in 8-bit floats stays as it is, out of reach of ORT's fusions for integers",
        ),
        NamedPass(
            "fuse_bias", FuseBias(), "after lowering: the kernel adds a bias while its output is in registers"
        ),
    ]


def verify(model: Path, passes: list[NamedPass]) -> dict[str, int]:
    """Count what runs as MatMulNBits, MatMulBnb4 and GatherBlockQuantized after ONNX Runtime's optimizer.

    Raises:
        PromiseError, ResourceError: see ``verify_running``.
    """
    return verify_running(model, passes)
