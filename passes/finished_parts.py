"""What of quantizing is finished, as checkpoints: put down part by part, and taken up by a run that goes on.

A part is a segment, or a weight outside segments: the scales that were moved in it, its weights as they lie in the spill file, and the
activations that it hands on.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import onnx_ir as ir

from qcompiler.errors import ResumeError
from qcompiler.graph.checkpoints import Checkpoints
from qcompiler.graph.stored_corrections import StoredCorrections, restore_corrections
from qcompiler.graph.stored_quantized import Layout
from qcompiler.graph.weight_form import record_of, restore_weight
from qcompiler.graph.weight_store import WeightStore
from qcompiler.passes.layer_result import LayerResult
from qcompiler.passes.migrate_scales import AppliedScale
from qcompiler.passes.shift_inputs import AppliedShift
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.planned_weight import PlannedWeight


@dataclass(frozen=True, eq=False)
class FinishedWeight:
    """A weight that is in the spill file.

    Attributes:
        make: its nodes, for ``WeightPlacement.put``.
        corrections: what stands beside its codes.
    """

    planned: PlannedWeight
    result: LayerResult
    make: Callable[[Layout, str], list[ir.Node]]
    corrections: StoredCorrections | None


@dataclass(frozen=True, eq=False)
class FinishedPart:
    """A part that an earlier run had finished.

    Attributes:
        borders, float_borders: what ``SavedBorders.save`` gave.
    """

    scales: list[AppliedScale | AppliedShift]
    weights: list[FinishedWeight]
    borders: Any
    float_borders: Any


class FinishedParts:
    """Parts in the order in which they are done.

    Args:
        checkpoints: over the same store; None: nothing is kept.
    """

    def __init__(self, plan: Plan, store: WeightStore, checkpoints: Checkpoints | None) -> None:
        self._plan = plan
        self._store = store
        self._checkpoints = checkpoints
        self._weights: list[dict[str, Any]] = []  # done since the last part was saved
        self._scales: list[AppliedScale | AppliedShift] = []  # likewise

    @property
    def are_kept(self) -> bool:
        """Whether ``save`` writes anything."""
        return self._checkpoints is not None

    @property
    def more(self) -> bool:
        """Whether there are any still to be taken."""
        return self._checkpoints is not None and bool(self._checkpoints.found)

    def add_scales(self, applied: Sequence[AppliedScale | AppliedShift]) -> None:
        """Scales that were moved in the part at hand."""
        self._scales += applied

    def add_weight(
        self,
        planned: PlannedWeight,
        result: LayerResult,
        node: ir.Node,
        corrections: StoredCorrections | None,
    ) -> None:
        """A weight of the part at hand; ``node`` is the last of its middle form."""
        self._weights.append(
            {
                "index": self._plan.quantized.index(planned),
                "stored": record_of(node),
                "beside": None if corrections is None else corrections.record(),
                "result": asdict(result),
            }
        )

    def save(self, part: str, borders: Any, float_borders: Any = None) -> None:
        """Makes what was added since the last one a part of its own.

        Raises:
            ResourceError: the disk is full.
        """
        if self._checkpoints is not None:
            scales = [applied.record(self._store) for applied in self._scales]
            content = {"scales": scales, "weights": self._weights, "borders": borders}
            if float_borders is not None:
                content["float_borders"] = float_borders
            self._checkpoints.add(part, content)
        self._weights, self._scales = [], []

    def take(self, part: str) -> FinishedPart | None:
        """The next part, if an earlier run had finished it.

        Raises:
            ResumeError: the next finished part is another one, or is planned otherwise now.
        """
        saved = None if self._checkpoints is None else self._checkpoints.take(part)
        if saved is None:
            return None
        scales = [
            (AppliedShift if "shift" in record else AppliedScale).restore(record, self._store)
            for record in saved["scales"]
        ]
        weights = [self._restored(entry) for entry in saved["weights"]]
        return FinishedPart(scales, weights, saved["borders"], saved.get("float_borders"))

    def _restored(self, entry: dict[str, Any]) -> FinishedWeight:
        planned, values = self._plan.quantized[entry["index"]], entry["result"]
        name, dtype = planned.weight.name, planned.weight.dtype
        if values["scheme"] != planned.scheme.label:
            raise ResumeError(
                f"{name}: was finished as {values['scheme']} and is now planned as {planned.scheme.label}; "
                "start again without --resume"
            )
        shape, notes = tuple(values["shape"]), tuple(values["notes"])
        result = LayerResult(**{**values, "shape": shape, "notes": notes})
        beside = entry["beside"]
        corrections = None if beside is None else restore_corrections(self._store, beside, name)
        make = partial(_nodes, self._store, entry["stored"], dtype)
        return FinishedWeight(planned, result, make, corrections)


def _nodes(
    store: WeightStore, record: dict[str, Any], dtype: ir.DataType, layout: Layout, name: str
) -> list[ir.Node]:
    """As ``WeightPlacement.put`` calls it; the record knows which way the weight lies."""
    return restore_weight(store, record, name, dtype)
