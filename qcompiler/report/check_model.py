"""Whether a model computes the same however it is run: at every optimization level, with one thread and more, on each provider.

The reference is ONNX Runtime without optimizations, with one thread, on its CPU. Each other way must load, run, yield numbers where the
reference does, and come within a bound of its outputs.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from qcompiler.calibration.feeds import index_bounds, input_specs, make_feeds
from qcompiler.calibration.fill import token_input
from qcompiler.calibration.sampling import random_feeds
from qcompiler.errors import InputError
from qcompiler.graph import model_file
from qcompiler.graph.edits import all_nodes
from qcompiler.graph.extract import is_tensor
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.quant.metrics import top1_agreement
from qcompiler.quant.similarity import Similarity
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.parting import Parting, find_parting, max_error
from qcompiler.report.session_variant import CPU, REFERENCE, REMOTE, SessionVariant, is_usable, run, variants
from qcompiler.report.sizes import counted
from qcompiler.report.tokenizer_place import find_tokenizer
from qcompiler.targets.profiled_session import profile, short

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]
BOUND_DB = 15.0
"""An error of 18 %. Where kernels round activations in each run, a last bit may turn a rounding the other way, and through 30 layers of a
4-bit language model that adds up to 21 dB; a kernel that computes something else ends far below."""
RANDOM_FEEDS = 2
RANDOM_TOKENS = 32


@dataclass(frozen=True)
class OutputParity:
    """One output of one way to run, over all feeds.

    Attributes:
        sqnr_db: against the reference; infinite where both are equal.
        max_error: largest difference.
        top1_agreement: share of rows with the same largest number; None where rows are no classes.
        not_numbers: NaN and infinities that the reference has not.
        compared: False where the reference has NaN and infinities alone.
    """

    name: str
    sqnr_db: float
    max_error: float
    top1_agreement: float | None
    not_numbers: int
    compared: bool = True


@dataclass(frozen=True)
class VariantParity:
    """One way to run the model.

    Attributes:
        holds: whether it loads, runs and stays within the bound.
        error: why it does not load or run, in ONNX Runtime's words.
        parting: the first node where it parts; a line where none was found; None where parity holds.
        elsewhere: nodes that the provider has no kernel for, by operator: they run on the CPU.
    """

    label: str
    level: str
    threads: int
    provider: str
    holds: bool
    outputs: list[OutputParity] = field(default_factory=list)
    error: str = ""
    parting: Parting | str | None = None
    elsewhere: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A finished check.

    Attributes:
        reference: the way to run that the others are compared with.
        data: what was run.
        bound_db: least SQNR of a float output.
        notes: what a reader should know.
    """

    model: str
    reference: str
    data: str
    bound_db: float
    variants: list[VariantParity]
    not_numbers: dict[str, int]
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every way to run does."""
        return all(variant.holds for variant in self.variants)


def check(
    path: str | Path,
    data: EvaluationData,
    providers: Sequence[str] = (),
    bound_db: float = BOUND_DB,
    progress: Progress = lambda what, done, total: None,
) -> Check:
    """Run the model every way there is.

    Args:
        providers: beside the CPU; none for all that this ONNX Runtime offers here.
    Raises:
        InputError: no way loads it, or a provider is not there.
        CalibrationError: data that does not fit it.
    """
    place = model_file.model_path(path)
    model = model_file.load(place)
    left_out = [value.name for value in model.graph.outputs if not is_tensor(value)]
    if len(left_out) == len(model.graph.outputs):
        raise InputError(f"{place}: none of its outputs is a tensor; nothing can be compared")
    specs = input_specs(model)
    tokens = token_input(specs) is not None
    source = str(data.text) if data.text is not None else data.data
    if source is None:
        size = RANDOM_TOKENS if tokens else 64
        feeds: Sequence[Mapping[str, Array]] = list(
            random_feeds(specs, RANDOM_FEEDS, data.seed, highs=index_bounds(model), free_size=size)
        )
        described = f"{RANDOM_FEEDS} random feeds (seed {data.seed})"
    else:
        tokenizer = find_tokenizer(data.tokenizer, data.text, place)
        feeds = make_feeds(model, source, tokenizer, data.windows, data.length, data.seed, progress).feeds
        described = f"{counted(len(feeds), 'feed')} of {source}"
    ours = any(node.domain == OUR_DOMAIN for node in all_nodes(model))
    usable, lost = _providers(providers)
    found = _Checker(place, feeds, described, bound_db, progress).run(variants(usable, ours))
    notes = [
        f"{provider}: offered by ONNX Runtime, but it does not start here; left out" for provider in lost
    ]
    notes += [f"output {name} is no tensor; it was not compared" for name in left_out]
    return replace(found, notes=[*found.notes, *notes])


def _providers(asked: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those beside the CPU that can be used here, and those that are offered but cannot."""
    offered = ort.get_available_providers()
    for provider in asked:
        if provider not in offered:
            raise InputError(
                f"{provider}: this ONNX Runtime does not offer it; choose from {', '.join(offered)}"
            )
    wanted = [
        provider for provider in asked or offered if provider != CPU and (asked or provider not in REMOTE)
    ]
    usable = [provider for provider in wanted if is_usable(provider)]
    lost = [provider for provider in wanted if provider not in usable]
    if asked and lost:
        raise InputError(
            f"{lost[0]}: ONNX Runtime offers it, but it does not start here; is its device and driver there?"
        )
    return usable, lost


class _Checker:
    def __init__(
        self, path: Path, feeds: Sequence[Mapping[str, Array]], data: str, bound_db: float, progress: Progress
    ) -> None:
        self._path = path
        self._feeds = feeds
        self._data = data
        self._bound = bound_db
        self._progress = progress
        self._partings: list[tuple[list[dict[str, Array]], Parting | str]] = []

    def run(self, ways: Sequence[SessionVariant]) -> Check:
        failed: list[VariantParity] = []
        waiting = [REFERENCE, *ways]
        wanted: list[dict[str, Array]] | None = None
        while wanted is None and waiting:
            reference = waiting.pop(0)
            try:
                wanted = self._outputs(reference)
            except SESSION_ERRORS as error:
                failed.append(_failed(reference, error))
        if wanted is None:
            raise InputError(
                f"{self._path}: ONNX Runtime {ort.__version__} cannot run it in any way: {failed[0].error}"
            )
        found = list(failed)
        for done, way in enumerate(waiting):
            self._progress(f"running {way.label}", done, len(waiting))
            found.append(self._compare(way, reference, wanted))
        bad = {
            name: count
            for name in wanted[0]
            if (count := sum(_not_numbers(outputs[name]) for outputs in wanted))
        }
        notes = [
            _said_of(name, count, sum(outputs[name].size for outputs in wanted), self._path)
            for name, count in bad.items()
        ]
        return Check(str(self._path), reference.label, self._data, self._bound, found, bad, notes)

    def _outputs(self, way: SessionVariant) -> list[dict[str, Array]]:
        session = way.open(self._path)
        return [run(session, feed) for feed in self._feeds]

    def _compare(
        self, way: SessionVariant, reference: SessionVariant, wanted: Sequence[Mapping[str, Array]]
    ) -> VariantParity:
        try:
            got = self._outputs(way)
        except SESSION_ERRORS as error:
            return _failed(way, error)
        outputs = [_parity(name, [w[name] for w in wanted], [g[name] for g in got]) for name in wanted[0]]
        alike = all(output.sqnr_db >= self._bound and not output.not_numbers for output in outputs)
        holds = alike and all(output.compared for output in outputs)
        parting: Parting | str | None = None
        if not alike:
            parting = self._parting(way, reference, wanted, got)
        return VariantParity(
            way.label, way.level, way.threads, way.provider, holds, outputs, parting=parting, elsewhere=self._elsewhere(way),
        )  # fmt: skip

    def _parting(
        self,
        way: SessionVariant,
        reference: SessionVariant,
        wanted: Sequence[Mapping[str, Array]],
        got: list[dict[str, Array]],
    ) -> Parting | str:
        """On the feed that differs most; looked for once for all ways with the same outputs."""
        for others, known in self._partings:
            if all(_equal(a, b) for a, b in zip(others, got, strict=True)):
                return known
        self._progress(f"looking where {way.label} parts", 0, 1)
        worst = min(
            range(len(self._feeds)),
            key=lambda i: min(_sqnr(wanted[i][name], got[i][name]) for name in got[i]),
        )
        found = find_parting(self._path, way, self._feeds[worst], self._bound, reference)
        self._partings.append((got, found))
        return found

    def _elsewhere(self, way: SessionVariant) -> dict[str, int]:
        if way.provider == CPU:
            return {}
        nodes = profile(self._path, self._feeds[0], [way.provider, CPU], runs=1).nodes
        return dict(Counter(node.op for node in nodes if node.provider == CPU).most_common())


def _failed(way: SessionVariant, error: Exception) -> VariantParity:
    return VariantParity(way.label, way.level, way.threads, way.provider, False, error=short(error))


def _said_of(name: str, count: int, size: int, path: Path) -> str:
    """Of an output that holds NaN or infinity in the reference already."""
    where = f"qcompile trace {path} shows the first layer that has any"
    if count == size:
        return (
            f"output {name}: all {count} numbers are NaN or infinite in the reference already, so nothing can be compared; "
            f"{where}"
        )
    return f"output {name}: {count} of the reference's numbers are NaN or infinite; {where}"


def _parity(name: str, wanted: Sequence[Array], got: Sequence[Array]) -> OutputParity:
    similarity = Similarity()
    worst, extra, agreeing, rows, size, known = 0.0, 0, 0.0, 0, 0, 0
    for r, a in zip(wanted, got, strict=True):
        if r.shape != a.shape:
            return OutputParity(name, -math.inf, math.inf, None, 0)
        if r.dtype.kind not in "fiub":
            continue
        finite = np.isfinite(r) if r.dtype.kind == "f" else np.ones(r.shape, bool)
        size, known = size + r.size, known + int(finite.sum())
        extra += _not_numbers(a[finite])
        both = finite & (np.isfinite(a) if a.dtype.kind == "f" else True)
        similarity.add(r[both], a[both])
        worst = max(worst, max_error(r, a))
        ranked = r.dtype.kind == "f" and r.ndim > 1 and r.shape[-1] > 1 and r.size > 0
        if ranked and finite.all() and not _not_numbers(a):
            count = r.size // r.shape[-1]
            agreeing += count * top1_agreement(r.reshape(count, -1), a.reshape(count, -1))
            rows += count
    return OutputParity(
        name, similarity.sqnr_db, worst, agreeing / rows if rows else None, extra, not size or known > 0
    )


def _sqnr(wanted: Array, got: Array) -> float:
    if wanted.shape != got.shape or wanted.dtype.kind not in "fiub":
        return -math.inf
    found = Similarity()
    found.add(np.nan_to_num(wanted), np.nan_to_num(got))
    return found.sqnr_db


def _equal(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f") for name in one)


def _not_numbers(array: Array) -> int:
    return int((~np.isfinite(array)).sum()) if array.dtype.kind == "f" else 0
