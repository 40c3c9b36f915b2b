"""Target `qcompiler`: as `ort`, with products on our own kernels.

The saved model carries the stock node as the body of each of our operators, so it also runs where our library is not registered. Both
ways are tried after saving.
"""

from pathlib import Path

from qcompiler.pass_manager import NamedPass
from qcompiler.passes.use_own_kernels import UseOwnKernels
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime import register
from qcompiler.targets import ort
from qcompiler.targets.running_nodes import verify_loads, verify_running


def lowering(recipe: Recipe) -> list[NamedPass]:
    """Passes from the middle form."""
    return [
        *ort.lowering(recipe),
        NamedPass(
            "use_own_kernels", UseOwnKernels(), "last: it takes over what became MatMulNBits, bias and all"
        ),
    ]


def verify(model: Path, passes: list[NamedPass]) -> dict[str, int]:
    """Count what runs on our kernels, and on ONNX Runtime's, after its optimizer.

    Raises:
        PromiseError, ResourceError: see ``verify_running``; also where this installation has no library of ours.
        PromiseError: the model does not load without the library.
    """
    running = verify_running(model, passes, register)
    verify_loads(model, "without our library")
    return running
