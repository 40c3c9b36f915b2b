"""What the passes of a compile tell once they have run: of each weight, of bits, of rotation, and what they left alone."""

from dataclasses import replace

from qcompiler.pass_manager import NamedPass
from qcompiler.passes.assign_bits import AssignBits, MixedResult
from qcompiler.passes.fuse_followers import FuseFollowers
from qcompiler.passes.insert_qdq import InsertQdq
from qcompiler.passes.keep_float_products import KeepFloatProducts
from qcompiler.passes.lay_out_for_kernels import LayOutForKernels
from qcompiler.passes.layer_result import LayerResult
from qcompiler.passes.lower_with_offsets import LowerWithOffsets
from qcompiler.passes.quantize_weights import QuantizeWeights
from qcompiler.passes.rotate import Rotate, RotationResult
from qcompiler.passes.store_three_bits import StoreThreeBits
from qcompiler.passes.use_own_codebooks import UseOwnCodebooks
from qcompiler.passes.use_own_gathers import UseOwnGathers
from qcompiler.passes.use_own_kernels import UseOwnKernels


def mixed_result(passes: list[NamedPass]) -> MixedResult | None:
    """How bits were given out, after the passes have run; None where the recipe fixes them."""
    return next((entry.run.result for entry in passes if isinstance(entry.run, AssignBits)), None)


def rotation_result(passes: list[NamedPass]) -> RotationResult | None:
    """What was rotated, after the passes have run; None where the recipe asks for none."""
    return next((e.run.result for e in passes if isinstance(e.run, Rotate) and e.run.asked_for), None)


def layer_results(passes: list[NamedPass]) -> list[LayerResult]:
    """What became of each weight, after the passes have run."""
    saved: dict[str, int] = {}
    for entry in passes:
        if isinstance(entry.run, (StoreThreeBits, LayOutForKernels)):
            saved |= {name: saved.get(name, 0) + less for name, less in entry.run.saved.items()}
    return [
        replace(
            result,
            stored_bytes=result.stored_bytes - saved.get(result.name, 0),
            notes=tuple(entry.run.notes_of(result.name)),
        )
        for entry in passes
        if isinstance(entry.run, QuantizeWeights)
        for result in entry.run.results
    ]


def left_plain(passes: list[NamedPass]) -> list[str]:
    """What kernels do not read after all, though the target has some for it, once the passes have run."""
    return [
        line
        for entry in passes
        if isinstance(
            entry.run,
            (
                FuseFollowers,
                InsertQdq,
                KeepFloatProducts,
                LayOutForKernels,
                LowerWithOffsets,
                StoreThreeBits,
                UseOwnCodebooks,
                UseOwnGathers,
                UseOwnKernels,
            ),
        )
        for line in entry.run.left
    ]
