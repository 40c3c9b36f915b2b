"""How far a model is from its reference, on data that both run.

text        a language model, window by window: perplexity of both, KL(reference || model), top-1 agreement
data        any model: SQNR, cosine and top-1 agreement of each output
neither     the same on seeded random inputs
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.data import TOKENS, open_calibration, text_encoder
from qcompiler.calibration.fill import token_input
from qcompiler.calibration.sampling import random_feeds
from qcompiler.calibration.text_windows import text_windows
from qcompiler.errors import InputError, NotFiniteError
from qcompiler.graph import model_file
from qcompiler.graph.model_file import model_path
from qcompiler.quant import metrics
from qcompiler.quant.similarity import Similarity
from qcompiler.report.comparable_model import ComparableModel, open_comparable
from qcompiler.report.origin import origin_notes
from qcompiler.report.quantized_products import read_products
from qcompiler.report.sizes import counted
from qcompiler.report.tokenizer_place import find_tokenizer

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]
Watch = Callable[[Mapping[str, Array], str, Array, Array], None]
"""Sees each feed, the name of an output, what the reference gives and what the model gives."""
RANDOM_SAMPLES = 8
INFINITE = "infinity in an output"
"""What a note begins with where one of the models alone gives it."""


def unwatched(feed: Mapping[str, Array], name: str, wanted: Array, got: Array) -> None:
    """Nobody looks."""


@dataclass(frozen=True)
class EvaluationData:
    """What to evaluate on.

    Attributes:
        text: UTF-8 file; with ``tokenizer``, a tokenizer.json; default the one beside the reference.
        data: feeds, in any form that ``--calib`` takes.
        windows, length: of the text; ``windows`` is also the most feeds of ``data`` that are used, 0 for all.
        skip_chars, offset: where in the text to start: characters, and a fraction of it.
        seed: of random inputs.
    """

    text: Path | None = None
    tokenizer: Path | None = None
    data: str | None = None
    windows: int = 8
    length: int = 512
    skip_chars: int = 0
    offset: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class OutputDifference:
    """One output of both models over all data; top1_agreement is None where there are no classes."""

    name: str
    sqnr_db: float
    cosine: float
    top1_agreement: float | None


@dataclass(frozen=True)
class Evaluation:
    """A finished comparison.

    Attributes:
        data: what it ran on.
        samples: windows or feeds; tokens in them, for text.
        ppl, reference_ppl, kl: of text, else None; kl in nats a token.
        top1_agreement, sqnr_db, cosine: of the logits of a language model, else of the first output.
        outputs: every output that both have.
        notes: what a reader should know.
    """

    model: str
    reference: str
    data: str
    samples: int
    tokens: int | None
    ppl: float | None
    reference_ppl: float | None
    kl: float | None
    top1_agreement: float | None
    sqnr_db: float
    cosine: float
    outputs: list[OutputDifference]
    notes: list[str] = field(default_factory=list)


def evaluate(
    model: Path,
    reference: Path,
    data: EvaluationData,
    progress: Progress = lambda what, done, total: None,
    watch: Watch = unwatched,
) -> Evaluation:
    """Run both models on the same data and compare.

    Args:
        watch: is shown what was compared: logits of each window of a text, else every common output.
    Raises:
        NotFiniteError: outputs hold NaN or infinity.
        InputError: a model cannot be read or run, or they have nothing in common to compare.
        CalibrationError: the data does not fit.
    """
    model, reference = model_path(model), model_path(reference)
    data = replace(data, tokenizer=find_tokenizer(data.tokenizer, data.text, reference, model))
    text = None if data.text is None else _tokens(data, data.text)
    with ExitStack() as stack:
        ours = stack.enter_context(open_comparable(model))
        theirs = stack.enter_context(open_comparable(reference))
        notes = [
            f"{side.path}: computes in bfloat16, which ONNX Runtime's CPU does not; widened to float32 in a "
            "temporary file"
            for side in (ours, theirs)
            if side.widened
        ]
        notes += origin_notes(model, reference)
        if text is not None:
            return _compare_language(ours, theirs, text, notes, progress, watch)
        return _compare_outputs(ours, theirs, data, notes, progress, watch)


def _compare_language(
    ours: ComparableModel,
    theirs: ComparableModel,
    text: "_Tokens",
    notes: list[str],
    progress: Progress,
    watch: Watch,
) -> Evaluation:
    ids = text.ids
    name = _logits_name(ours, theirs)
    nats = reference_nats = kl = agreement = 0.0
    similarity = Similarity()
    for index, window in enumerate(ids):
        progress("evaluating", index, len(ids))
        feed = {TOKENS: window[None, :]}
        got, wanted = (side.run(feed, [name])[name] for side in (ours, theirs))
        _check_shapes(name, got, wanted)
        if wanted.ndim != 3 or wanted.shape[1] != len(window):
            raise InputError(
                f"{theirs.path}: output {name} is {list(wanted.shape)}, not [1, {len(window)}, vocabulary]; "
                "a text is for language models, give --data for others"
            )
        _check_logits(theirs, wanted)
        _check_logits(ours, got)
        nats += metrics.mean_nats(got[0, :-1], window[1:])
        reference_nats += metrics.mean_nats(wanted[0, :-1], window[1:])
        kl += metrics.kl_divergence(wanted, got)
        agreement += metrics.top1_agreement(wanted, got)
        similarity.add(wanted, got)
        watch(feed, name, wanted, got)
    progress("evaluating", len(ids), len(ids))
    windows = len(ids)  # of equal length, so their mean is the mean over positions
    output = OutputDifference(name, similarity.sqnr_db, similarity.cosine, agreement / windows)
    return Evaluation(
        str(ours.path),
        str(theirs.path),
        text.described,
        windows,
        ids.size,
        metrics.perplexity(nats / windows),
        metrics.perplexity(reference_nats / windows),
        kl / windows,
        output.top1_agreement,
        output.sqnr_db,
        output.cosine,
        [output],
        notes,
    )


def _compare_outputs(
    ours: ComparableModel,
    theirs: ComparableModel,
    data: EvaluationData,
    notes: list[str],
    progress: Progress,
    watch: Watch,
) -> Evaluation:
    feeds, source = _feeds(ours, theirs, data, notes)
    names = _common_outputs(ours, theirs, notes)
    sums = {name: Similarity() for name in names}
    agreeing: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    samples = 0
    infinite: dict[str, int] = {}
    for feed in feeds:
        progress("evaluating", samples, max(samples + 1, data.windows))
        got, wanted = (side.run(feed, names) for side in (ours, theirs))
        for name in names:
            _check_shapes(name, got[name], wanted[name])
            _check_numbers(ours, theirs, name, got[name], wanted[name])
            if count := _unlike_infinities(wanted[name], got[name]):
                infinite[name] = infinite.get(name, 0) + count
            sums[name].add(wanted[name], got[name])
            watch(feed, name, wanted[name], got[name])
            shape = wanted[name].shape
            if wanted[name].dtype.kind == "f" and len(shape) >= 2 and shape[-1] >= 2 and wanted[name].size:
                rows = wanted[name].size // shape[-1]
                agreeing[name].append((metrics.top1_agreement(wanted[name], got[name]), rows))
        samples += 1
    progress("evaluating", samples, samples)
    notes += [
        f"{INFINITE}, {name}: {counted(count, 'number')} of one model alone; qcompile trace {ours.path} "
        f"--reference {theirs.path} shows where it begins"
        for name, count in infinite.items()
    ]
    outputs = [
        OutputDifference(name, sums[name].sqnr_db, sums[name].cosine, _weighted(agreeing[name]))
        for name in names
    ]
    first = outputs[0]
    return Evaluation(
        str(ours.path),
        str(theirs.path),
        source,
        samples,
        None,
        None,
        None,
        None,
        first.top1_agreement,
        first.sqnr_db,
        first.cosine,
        outputs,
        notes,
    )


def _feeds(
    ours: ComparableModel, theirs: ComparableModel, data: EvaluationData, notes: list[str]
) -> tuple[Iterable[Mapping[str, Array]], str]:
    if data.data is not None:
        samples = data.windows or 1 << 40
        opened = open_calibration(data.data, data.tokenizer, samples, data.length)
        notes += [line.replace("set calib.samples", "set --windows") for line in opened.warnings]
        return opened, opened.source
    # What has a default is left out: a weight that could be overridden is an input no more once it is quantized.
    wanted, taken = ([spec for spec in side.inputs if spec.default is None] for side in (theirs, ours))
    lacking = [spec.name for spec in wanted if spec.name not in {other.name for other in taken}]
    extra = [spec.name for spec in taken if spec.name not in {other.name for other in wanted}]
    if lacking or extra:
        differences = [f"{theirs.path} alone takes {', '.join(lacking)}"] if lacking else []
        differences += [f"{ours.path} alone takes {', '.join(extra)}"] if extra else []
        raise InputError(
            f"the models' inputs differ: {'; '.join(differences)}; is it the model's own reference? "
            "If so, give --text or --data that fits both"
        )
    notes.append(f"random inputs (seed {data.seed}): give --text or --data for figures that mean something")
    tokens = token_input(wanted)
    sizes = [last for rank, last in theirs.outputs.values() if rank == 3 and last is not None]
    highs = ({tokens: max(sizes)} if tokens is not None and sizes else {}) | theirs.bounds
    samples = min(data.windows, RANDOM_SAMPLES) or RANDOM_SAMPLES
    return random_feeds(wanted, samples, data.seed, highs=highs), "random inputs"


def _common_outputs(ours: ComparableModel, theirs: ComparableModel, notes: list[str]) -> list[str]:
    common = [name for name in theirs.outputs if name in ours.outputs]
    if not common:
        raise InputError(
            f"no output in common: {ours.path} has {', '.join(ours.outputs)}, "
            f"{theirs.path} has {', '.join(theirs.outputs)}; is it the model's own reference?"
        )
    left_out = [name for name in (*theirs.outputs, *ours.outputs) if name not in common]
    if left_out:
        notes.append(f"outputs that only one model has were not compared: {', '.join(left_out)}")
    return common


def _logits_name(ours: ComparableModel, theirs: ComparableModel) -> str:
    common = _common_outputs(ours, theirs, [])
    candidates = [name for name in common if theirs.outputs[name][0] in (None, 3)]
    if not candidates:
        raise InputError(
            f"{theirs.path}: no output [batch, sequence, vocabulary] among {', '.join(common)}; "
            "a text is for language models, give --data for others"
        )
    return "logits" if "logits" in candidates else candidates[0]


def _check_shapes(name: str, got: Array, wanted: Array) -> None:
    if got.shape != wanted.shape:
        raise InputError(
            f"output {name}: the model gives {list(got.shape)}, the reference {list(wanted.shape)}; "
            "is it the model's own reference?"
        )


def _check_logits(side: ComparableModel, logits: Array) -> None:
    """Logits of -inf exclude a token; every row needs one that is possible, and no NaN."""
    if logits.size and not np.isfinite(logits.max(axis=-1)).all():
        raise NotFiniteError(f"{side.path}: its logits hold NaN or infinity; {_remedy(side)}")


def _check_numbers(
    ours: ComparableModel, theirs: ComparableModel, name: str, got: Array, wanted: Array
) -> None:
    if got.dtype.kind in "fV" and np.isnan(got).any():
        both = bool(np.isnan(wanted).any())
        whose = "the reference's too" if both else "the reference's does not"
        raise NotFiniteError(
            f"{ours.path}: output {name} holds NaN, {whose}; nothing can be compared: {_remedy(theirs if both else ours)}"
        )


def _unlike_infinities(wanted: Array, got: Array) -> int:
    """Numbers that are infinite in one model and not, or of the other sign, in the other."""
    if wanted.dtype.kind != "f" or got.dtype.kind != "f":
        return 0
    return int(((np.isinf(wanted) | np.isinf(got)) & (wanted != got)).sum())


def _remedy(side: ComparableModel) -> str:
    """Where to look; more bits help only where there are some."""
    where = f"qcompile trace {side.path} shows the first layer that does"
    if not read_products(model_file.load(side.path)):
        return where
    return f"{where}; or compile it again, with more bits or another algorithm"


def _weighted(parts: list[tuple[float, int]]) -> float | None:
    rows = sum(count for _, count in parts)
    return sum(value * count for value, count in parts) / rows if rows else None


@dataclass(frozen=True)
class _Tokens:
    """Tokens int64 [windows, length], and where they are from."""

    ids: npt.NDArray[np.int64]
    described: str


def _tokens(data: EvaluationData, path: Path) -> _Tokens:
    encode = text_encoder(data.tokenizer, str(path))
    found = text_windows(path, encode, data.windows, data.length, data.skip_chars, data.offset)
    count = len(found.ids)
    return _Tokens(
        found.ids, f"{path} from character {found.start}, {counted(count, 'window')} of {data.length} tokens"
    )
