"""Everything a report shows of one model, as plain dataclasses: what is in it, what its compile did, what it lost, and where."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompiler.calibration.data import text_decoder
from qcompiler.errors import NotFiniteError
from qcompiler.graph import model_file
from qcompiler.graph.census import take_census
from qcompiler.passes.layer_result import LayerResult
from qcompiler.passes.normalize import Normalize
from qcompiler.report.alignment import without_marks
from qcompiler.report.block_operators import BlockOperators, block_operators
from qcompiler.report.compile_report import CompileReport
from qcompiler.report.confusion import Confusion, ConfusionCounter
from qcompiler.report.evaluate import Evaluation, EvaluationData, evaluate, unwatched
from qcompiler.report.inspect_model import REPORT, InspectedProduct, Inspection, inspect_loaded
from qcompiler.report.layer_measures import LayerMeasures, measure_layers
from qcompiler.report.origin import origin_notes
from qcompiler.report.quantized_products import read_products
from qcompiler.report.tensor_errors import TURNED
from qcompiler.report.tokenizer_place import find_tokenizer
from qcompiler.report.weight_histograms import HistogramPair, weight_histogram
from qcompiler.report.worst_tokens import WorstToken, WorstTokens

Progress = Callable[[str, int, int], None]
HISTOGRAMS = 4
"""Of the worst layers' weights, and of their activations."""
NOT_COMPARED = "outputs were not compared"
"""What a note begins with where they hold NaN or infinity."""
OTHER_REPORT = (
    "report.json beside the model is not shown: another version of qcompiler wrote it, or something else; "
    "compile again to see what the compile found"
)


@dataclass(frozen=True)
class LayerRow:
    """One product with what was measured of it.

    Attributes:
        block: of the model that it belongs to; empty outside of any.
        error: ``LayerResult.output_error`` of its compile, |y - y'|^2 / |y|^2 with this weight alone rounded; None where there is none.
        sqnr_db: the same in dB.
        depth_sqnr_db: SQNR of its output with all rounding before it, on data; None where that was not measured.
        reason: what decided how it is stored.
    """

    name: str
    block: str
    role: str
    op: str
    shape: tuple[int, ...]
    label: str
    quantized: bool
    bytes: int
    share: float
    error: float | None
    sqnr_db: float | None
    algorithm: str
    reason: str
    depth_sqnr_db: float | None = None


@dataclass(frozen=True)
class SpeedFigure:
    """How fast the model runs one workload.

    Attributes:
        workload: "prefill, 512 tokens".
        milliseconds: median; tokens_per_second: None where it takes no tokens.
        times_as_fast: as the float model, in turn with it; None where it was measured alone.
    """

    workload: str
    milliseconds: float
    tokens_per_second: float | None
    times_as_fast: float | None


@dataclass(frozen=True)
class ReferenceFile:
    """The float model, and the bytes of its files."""

    path: str
    file_bytes: int


@dataclass(frozen=True)
class ModelReport:
    """What is known of one model.

    Attributes:
        inspection: of its graph; ``reference``: the float model, where one was given.
        compiled: the report.json beside it; None for models of other tools.
        recipe, manifest: the texts of recipe.yaml and manifest.json beside it; empty where there are none.
        layers: every product in graph order.
        weights: histograms of the worst layers' weights; without a reference only after.
        hidden_weights: why there is none of some that would have been among them.
        evaluation: on data, against the reference; measures: of every layer, likewise.
        worst_tokens: of a language model on text; confusion: of a classifier.
        blocks: operators before and after, by block of the model.
        speed: of the model's workloads, where that was asked for.
        notes: what a reader should know.
    """

    inspection: Inspection
    layers: list[LayerRow]
    compiled: CompileReport | None = None
    recipe: str = ""
    manifest: str = ""
    reference: ReferenceFile | None = None
    weights: list[HistogramPair] = field(default_factory=list)
    hidden_weights: list[str] = field(default_factory=list)
    evaluation: Evaluation | None = None
    measures: LayerMeasures | None = None
    worst_tokens: list[WorstToken] = field(default_factory=list)
    confusion: Confusion | None = None
    blocks: list[BlockOperators] = field(default_factory=list)
    speed: list[SpeedFigure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As ``qcompile report --json`` prints it: dictionaries, lists and numbers."""
        return asdict(self) | {"compiled": None if self.compiled is None else self.compiled.plain()}

    def _repr_html_(self) -> str | None:
        """For notebooks: what sums it up, and the worst layers; None where jinja2 is not installed."""
        try:
            from qcompiler.report.page.page import summary_html
        except ImportError:
            return None  # the compiler's own extra; notebooks then show what repr() says
        return summary_html(self)


def outline(path: Path) -> ModelReport:
    """What the graph at ``path`` and the files beside it say; no weight is read, nothing is run.

    Raises:
        InputError: the model cannot be read.
    """
    place = model_file.model_path(path)
    return _outlined(place, model_file.load(place))


def _outlined(place: Path, model: ir.Model) -> ModelReport:
    """``outline`` of a model that was loaded from ``place``; it is normalized here."""
    inspection, compiled = inspect_loaded(place, model), CompileReport.read(place.with_name(REPORT))
    return ModelReport(
        inspection,
        _layers(inspection, compiled),
        compiled,
        _text(place.with_name("recipe.yaml")),
        _text(place.with_name("manifest.json")),
        notes=[OTHER_REPORT] if compiled is None and place.with_name(REPORT).exists() else [],
    )


def make_report(
    path: Path,
    reference: Path | None = None,
    data: EvaluationData | None = None,
    progress: Progress = lambda what, done, total: None,
    known_source: bool = False,
) -> ModelReport:
    """Look into the model at ``path``, and measure it where ``data`` says on what.

    Args:
        reference: the float model it was made from.
        data: to evaluate both on; needs ``reference``. None measures nothing.
        known_source: ``reference`` is what it was compiled from: its hash is not compared with the manifest's.
    Raises:
        InputError: a model cannot be read or run.
        CalibrationError: the data does not fit.
    """
    place = model_file.model_path(path)
    progress("looking into the model", 0, 1)
    model = model_file.load(place)
    found = _outlined(place, model)
    floats = source = None
    if reference is not None:
        reference = model_file.model_path(reference)
        source = model_file.load(reference)
        floats = ReferenceFile(
            str(reference),
            sum(file.stat().st_size for file in model_file.files_of(reference, source).values()),
        )
        Normalize()(source)
    report = replace(found, reference=floats, blocks=block_operators(source, model))
    if reference is not None and data is not None:
        report = _measured(report, place, reference, data, progress)
    elif reference is not None and not known_source:
        report = replace(report, notes=[*report.notes, *origin_notes(place, reference)])
    return _with_weights(report, model, source)


def _measured(
    report: ModelReport, path: Path, reference: Path, data: EvaluationData, progress: Progress
) -> ModelReport:
    tokenizer = find_tokenizer(data.tokenizer, data.text, reference, path)
    watch, tokens, classes = unwatched, None, None
    if data.text is not None:
        tokens = WorstTokens(None if tokenizer is None else text_decoder(tokenizer, str(data.text)))
        watch = tokens.watch
    else:
        classes = ConfusionCounter()
        watch = classes.watch
    notes = list(report.notes)
    try:
        evaluation = evaluate(path, reference, replace(data, tokenizer=tokenizer), progress, watch)
        notes += evaluation.notes
        report = replace(
            report,
            evaluation=evaluation,
            worst_tokens=[] if tokens is None else tokens.worst(),
            confusion=None if classes is None else classes.found(),
        )
    except NotFiniteError as error:  # where it breaks is what the page is then read for
        notes += origin_notes(path, reference)
        notes.append(f"{NOT_COMPARED}: {error}")
    measures = measure_layers(path, reference, data, progress)
    if isinstance(measures, str):
        return replace(report, notes=[*notes, f"layers were not compared: {measures}"])
    notes = list(dict.fromkeys([*notes, *measures.notes]))
    return replace(report, measures=measures, layers=_with_depth(report.layers, measures), notes=notes)


def _with_depth(layers: list[LayerRow], measures: LayerMeasures) -> list[LayerRow]:
    """Each layer with what was measured where it shows first, if that says something; of a weight that shows twice, the worse."""
    found: dict[str, float] = {}
    for error in measures.errors.values:
        if error.relation != TURNED:
            found |= {name: min(error.sqnr_db, found.get(name, math.inf)) for name in error.layers}
    return [replace(layer, depth_sqnr_db=found.get(layer.name)) for layer in layers]


def _layers(inspection: Inspection, compiled: CompileReport | None) -> list[LayerRow]:
    results = {} if compiled is None else {layer.name: layer for layer in compiled.layers}
    return [_row(product, results.get(product.name)) for product in inspection.products]


def _row(product: InspectedProduct, result: LayerResult | None) -> LayerRow:
    return LayerRow(
        product.name, product.block, product.role, product.op, product.shape, product.label, product.granularity is not None,
        product.bytes, product.share,
        None if result is None else result.output_error, None if result is None else result.sqnr_db,
        product.algorithm or ("" if result is None else result.algorithm), product.reason,
    )  # fmt: skip


def _with_weights(report: ModelReport, model: ir.Model, source: ir.Model | None) -> ModelReport:
    """With histograms of the worst quantized layers, of the first ones where nothing was measured; weights that hide theirs are named."""
    census = [] if source is None else take_census(source).weights
    floats = {without_marks(weight.name): weight for weight in census}
    stored = {weight.name: weight for weight in read_products(model)}
    ranked = sorted(
        (layer for layer in report.layers if layer.name in stored),
        key=lambda layer: (
            -(layer.error or 0.0),
            math.inf if layer.depth_sqnr_db is None else layer.depth_sqnr_db,
        ),
    )
    found: list[HistogramPair] = []
    hidden: list[str] = []
    for layer in ranked:
        if len(found) == HISTOGRAMS:
            break
        histogram = weight_histogram(model, stored[layer.name], floats)
        if isinstance(histogram, HistogramPair):
            found.append(histogram)
        else:
            hidden.append(histogram)
    return replace(report, weights=found, hidden_weights=hidden)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # not ours: an extra
