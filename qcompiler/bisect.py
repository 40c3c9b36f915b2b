"""Which pass of a compile breaks a model, and in which layer: the model runs beside the float one after every pass that changed it.

Each model is saved to a temporary folder, run, and removed; the first that is broken, or the last, stays until its layers have been
looked at.
"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler import api
from qcompiler.calibration.feeds import Progress
from qcompiler.errors import CalibrationError, InputError
from qcompiler.graph import model_file
from qcompiler.pass_manager import PassRecord
from qcompiler.passes.measured_outputs import KL, End, find_ends
from qcompiler.quant import metrics
from qcompiler.quant.tensor_difference import TensorDifference
from qcompiler.recipe import Recipe
from qcompiler.recipe.setting import Setting
from qcompiler.report.bisect_layers import Bound, bisect_opened
from qcompiler.report.comparison_feeds import LAYERS, comparison_feeds, described
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.pass_parity import PassBisection, PassParity
from qcompiler.report.tapped_model import TappedModel, open_tapped

Array = npt.NDArray[Any]
ROUNDING = frozenset({"quantize_weights", "round_activations", "round_to_float8", "insert_qdq"})
"""Passes that are there to lose something: the bound alone judges them."""
LOSS_DB = 6.0
EXACT_DB, ROUNDED_DB = 50.0, 40.0
"""Every other pass may lose ``LOSS_DB`` of what was there before it, or of so much: before any rounding, and after it, where kernels
round activations to 8 bits themselves."""


def bisect_passes(
    model: str | Path,
    recipe: str | Path | Recipe,
    bound: Bound,
    data: EvaluationData = LAYERS,
    *,
    calibration: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    target: str = "ort",
    settings: Sequence[str | Setting] = (),
    options: api.Options | None = None,
    progress: Progress = lambda what, done, total: None,
) -> PassBisection:
    """Compile into a temporary folder and find the first pass, and within it the first layer, that breaks parity.

    Args:
        data: what parity is measured on.
        calibration, tokenizer, target, settings, options: as ``api.compile`` takes them.
    Raises:
        QCompilerError: as the compile does, or the data does not fit.
    """
    start = time.perf_counter()
    source = model_file.model_path(model)
    with open_tapped(source) as reference, tempfile.TemporaryDirectory(prefix="qcompiler-bisect-") as folder:
        feeds = comparison_feeds(reference, data, progress)
        probe = ParityProbe(reference, feeds.feeds, bound, Path(folder))
        with _nothing_to_resume(folder):
            compiled = api.compile(
                source, recipe, calibration=calibration, tokenizer=tokenizer, output=Path(folder, "out"), target=target,
                settings=settings, options=replace(options or api.Options(), instruments=(probe,)), progress=progress,
            )  # fmt: skip
        layers, notes = None, list[str]()
        if probe.kept is not None:
            try:
                with open_tapped(probe.kept) as broken:
                    layers = bisect_opened(reference, broken, bound, feeds, progress)
            except InputError as error:
                notes.append(f"its layers cannot be compared: {error}")
        return PassBisection(
            str(source),
            compiled.report.recipe,
            bound.label,
            described(feeds),
            probe.passes,
            next((each.name for each in probe.passes if each.why), None),
            layers,
            sum(each.seconds for each in probe.passes),
            time.perf_counter() - start,
            [*feeds.warnings, *notes],
        )


@contextmanager
def _nothing_to_resume(folder: str) -> Iterator[None]:
    """Takes what the compile says of its work folder from what ends it: that folder goes too."""
    try:
        yield
    except BaseException as error:
        notes = getattr(error, "__notes__", [])
        notes[:] = [note for note in notes if folder not in note]
        raise


class ParityProbe:
    """An instrument that runs what each pass leaves.

    Attributes:
        passes: what was found so far.
        kept: the model of the first pass that broke parity; until one does, of the last that changed it.
    """

    def __init__(
        self, reference: TappedModel, feeds: Sequence[Mapping[str, Array]], bound: Bound, folder: Path
    ) -> None:
        self.passes: list[PassParity] = []
        self.kept: Path | None = None
        self._broke = False
        self._reference = reference
        self._feeds = feeds
        self._bound = bound
        self._folder = folder
        self._before = math.inf
        self._rounded = False
        self._ends = {end.output.name: end for end in _class_ends(reference.model)}
        if bound.max_kl is not None and not self._ends:
            raise CalibrationError(
                f"--max-kl: {reference.path} has no output that holds classes; give --min-sqnr or --max-error"
            )

    def before(self, name: str, model: ir.Model) -> None:
        """Nothing to do."""

    def after(self, record: PassRecord, model: ir.Model) -> None:
        """Save, run and compare."""
        if not record.modified:
            self.passes.append(PassParity(record.name, False, None, None, None, "", "", record.seconds))
            return
        place = self._folder / f"{len(self.passes):02d}-{record.name}"
        saved = model_file.save(model, place)
        try:
            found = self._measure(saved)
        except (InputError, CalibrationError) as error:
            note = f"does not run: {error}"
            self.passes.append(PassParity(record.name, True, None, None, None, "", note, record.seconds))
            shutil.rmtree(place)
            return
        why = self._broken(record.name, found)
        self.passes.append(
            PassParity(record.name, True, found.sqnr_db, found.max_error, found.kl, why, "", record.seconds)
        )
        self._before = found.sqnr_db
        self._rounded = self._rounded or record.name in ROUNDING
        leftover = place if self._broke else None if self.kept is None else self.kept.parent
        if not self._broke:
            self.kept, self._broke = saved, bool(why)
        if leftover is not None:
            shutil.rmtree(leftover)

    def _broken(self, name: str, found: "_Outputs") -> str:
        """Why parity is broken by a pass; empty where it holds. After the first break nothing more is."""
        if self._broke:
            return ""
        bound = self._bound
        if bound.max_kl is not None:
            beyond = found.kl is not None and not found.kl <= bound.max_kl
        elif bound.max_error is not None:
            beyond = not found.max_error <= bound.max_error
        else:
            beyond = found.sqnr_db < bound.sqnr
        if beyond:
            return f"beyond the bound, {bound.label}"
        allowed = min(self._before, ROUNDED_DB if self._rounded else EXACT_DB) - LOSS_DB
        if name not in ROUNDING and found.sqnr_db < allowed:
            return f"rounds nothing, and leaves less than {allowed:.0f} dB"
        return ""

    def _measure(self, saved: Path) -> "_Outputs":
        sums: dict[str, TensorDifference] = {}
        kl: list[float] = []
        with open_tapped(saved) as model:
            theirs, ours = self._reference.plain(), model.plain()
            for feed in self._feeds:
                wanted, got = theirs.run(feed), ours.run(feed)
                for name, array in wanted.items():
                    if array.dtype.kind not in "fV" or name not in got:
                        continue
                    if array.shape != got[name].shape:
                        raise InputError(
                            f"output {name} is {list(got[name].shape)}, of the float model {list(array.shape)}"
                        )
                    sums.setdefault(name, TensorDifference()).add(array, got[name])
                    end = self._ends.get(name)
                    if end is not None and end.measure(array.shape) == KL:
                        kl.append(_kl(array, got[name]))
        if not sums:
            raise InputError("no output of floats in common with the float model")
        return _Outputs(
            min(each.sqnr_db for each in sums.values()),
            math.inf
            if any(each.unlike for each in sums.values())
            else max(e.max_error for e in sums.values()),
            sum(kl) / len(kl) if kl else None,
        )


@dataclass(frozen=True)
class _Outputs:
    """How far the outputs are from the float model's."""

    sqnr_db: float
    max_error: float
    kl: float | None


def _kl(wanted: Array, got: Array) -> float:
    return metrics.kl_divergence(wanted, got) if np.isfinite(got).all() else math.inf


def _class_ends(model: ir.Model) -> list[End]:
    try:
        return find_ends(model)
    except CalibrationError:  # it has no product with a weight
        return []
