"""Which models are measured against one another, and how each is run.

--against MODEL2      both with our library where they hold operators of ours
without it            a model that holds some: with our library, against the same file without it, where ONNX Runtime runs
                      the operators' function bodies on its own kernels
                      any other: alone
"""

import os
from dataclasses import dataclass, replace

import onnx_ir as ir

from qcompiler.bench.contender import Contender
from qcompiler.bench.result import Measured
from qcompiler.errors import ResourceError
from qcompiler.graph import model_file
from qcompiler.graph.edits import all_nodes
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.runtime import library_path

WITH, WITHOUT, STOCK = (
    "with our library",
    "without our library: its function bodies",
    "ONNX Runtime's own operators",
)


@dataclass(frozen=True)
class Side:
    """One that takes part; ``model`` is its structure."""

    contender: Contender
    how: str
    model: ir.Model

    @property
    def measured(self) -> Measured:
        return Measured(self.contender.path, self.how)


def pair_up(
    model: str | os.PathLike[str], against: str | os.PathLike[str] | None, threads: int | None
) -> tuple[list[Side], list[str]]:
    """One or two sides, the model first; and notes on why they are these.

    Raises:
        InputError: a file that is no model.
        ResourceError: this installation has no library of ours to measure.
    """
    first = _side(model, threads)
    if against is not None:
        return [first, _side(against, threads)], []
    if not first.contender.library:
        return [first], [
            "measured alone: the model holds no operators of ours; --against MODEL2 measures another in turn with it"
        ]
    bodiless = sorted(_our_operators(first.model) - {name for _, name, _ in first.model.functions})
    if bodiless:
        return [first], [
            f"measured alone: without our library it cannot run, {bodiless[0]} has no function body; --against MODEL2 measures "
            "another in turn with it"
        ]
    return [first, replace(first, contender=replace(first.contender, library=False), how=WITHOUT)], []


def _side(path: str | os.PathLike[str], threads: int | None) -> Side:
    model = model_file.load(path)
    place = str(model_file.model_path(path))
    if not _our_operators(model):
        return Side(Contender(place, False, threads), STOCK, model)
    try:
        library_path()
    except ResourceError as error:
        raise ResourceError(f"{place}: holds operators of ours, and {error}") from error
    return Side(Contender(place, True, threads), WITH, model)


def _our_operators(model: ir.Model) -> set[str]:
    return {node.op_type for node in all_nodes(model) if node.domain == OUR_DOMAIN}
