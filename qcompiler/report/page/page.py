"""A `ModelReport` as HTML: numbers become words, tables and figures here; how they lie on the page is in the templates."""

import math
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from qcompiler.errors import ResourceError
from qcompiler.graph.disk import writing
from qcompiler.report import figures
from qcompiler.report.block_operators import BlockOperators
from qcompiler.report.compile_report import CompileReport
from qcompiler.report.layer_measures import LayerMeasures
from qcompiler.report.model_report import LayerRow, ModelReport
from qcompiler.report.page.budget import Budget, budget
from qcompiler.report.page.heat_map import HeatMap, heat_map
from qcompiler.report.page.layer_rows import layer_row, layer_rows, told
from qcompiler.report.page.tiles import Tile, tiles
from qcompiler.report.sizes import counted, format_bytes, format_seconds
from qcompiler.report.tensor_errors import TURNED
from qcompiler.report.weight_histograms import HistogramPair
from qcompiler.report.worst_tokens import WorstToken

NAME = "report.html"
FOLDER = Path(__file__).parent
WORST = 5
MARK = '<meta name="generator" content="qcompiler">'
"""In every page of ours, by which it is known to be one."""
NO_ERRORS = "No errors were measured: give the float model (--reference MODEL) and data (--data PATH, or --text FILE) to see them."
OF_COMPILE = (
    "Relative squared error of each layer's output on the calibration data with its own weight rounded and all else exact, "
    "|y - y'|² / |y|²: what the compile measured."
)
THROUGH_DEPTH = (
    "Relative squared error of each layer's output on data, |y - y'|² / |y|², with all rounding before it: there is no report.json of a "
    "compile that would tell the layers apart."
)
OF_WEIGHTS = (
    "Relative squared error of each weight, |W - W'|² / |W|²: this recipe runs nothing to measure outputs."
)


@dataclass
class _Page:
    """What the template shows; empty parts are left out."""

    title: str
    subtitle: str
    tiles: list[Tile]
    warnings: list[str]
    rows: list[dict[str, Any]]
    worst: list[dict[str, Any]]
    facts: list[str]
    blocks: list[dict[str, Any]]
    has_reference: bool
    error_bars: str = ""
    error_meaning: str = ""
    no_errors: str = NO_ERRORS
    heat: HeatMap | None = None
    growth: str = ""
    growth_meaning: str = ""
    growth_rows: list[dict[str, str]] = field(default_factory=list)
    weights: list[dict[str, str]] = field(default_factory=list)
    hidden_weights: list[str] = field(default_factory=list)
    activations: list[dict[str, str]] = field(default_factory=list)
    budget: Budget | None = None
    tokens: list[Any] = field(default_factory=list)
    confusion: Any = None
    confusion_meaning: str = ""
    graph_meaning: str = ""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    passes: list[dict[str, Any]] = field(default_factory=list)
    idle_passes: int = 0
    recipe: str = ""
    manifest: str = ""

    @property
    def sections(self) -> list[tuple[str, str]]:
        """(anchor, name) of those that are there."""
        parts = [
            ("layers", "Layers", True),
            ("depth", "Depth", self.growth),
            ("distributions", "Distributions", self.weights or self.activations or self.hidden_weights),
            ("budget", "Bits", self.budget),
            ("tokens", "Tokens", self.tokens),
            ("classes", "Classes", self.confusion),
            ("graph", "Graph", True),
            ("float", "In floats", self.skipped),
            ("passes", "Passes", self.passes),
            ("files", "Files", True),
        ]
        return [(anchor, name) for anchor, name, there in parts if there]


def check_page(path: Path, force: bool) -> None:
    """Refuses a place where something else would be lost.

    Raises:
        ResourceError: a file is there that no report was written to, or there is no such folder.
    """
    if not path.absolute().parent.is_dir():
        raise ResourceError(
            f"{path}: there is no folder {path.absolute().parent}; make it, or choose another -o"
        )
    if path.exists() and not force and not _is_page(path):
        raise ResourceError(f"{path}: exists and is no report; choose another -o, or replace it with --force")


def _is_page(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return MARK in file.read(1024)
    except (OSError, UnicodeDecodeError):
        return False


def write_page(report: ModelReport, path: Path) -> None:
    """The whole page into a file, which is there whole or not at all.

    Raises:
        ResourceError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            beside.write_text(page_html(report), encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def page_html(report: ModelReport) -> str:
    """One HTML document; its style, script and figures are in it."""
    template = _templates().get_template("page.html.j2")
    css, js = (
        Markup((FOLDER / name).read_text("utf-8")) for name in ("page.css", "page.js")
    )  # ours, not data
    return template.render(page=_page(report), css=css, js=js, mark=Markup(MARK))


def summary_html(report: ModelReport) -> str:
    """Tiles and the worst layers, for notebooks: no script, no figure, nothing that a notebook's own style would meet."""
    return _templates().get_template("summary.html.j2").render(page=_page(report, drawn=False))


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )


def _page(report: ModelReport, drawn: bool = True) -> _Page:
    found, compiled = report.inspection, report.compiled
    name = Path(found.model).name if compiled is None else compiled.model
    page = _Page(
        title=name if compiled is None else f"{name} · {compiled.recipe}",
        subtitle=_subtitle(report),
        tiles=tiles(report),
        warnings=[*([] if compiled is None else compiled.warnings), *report.notes],
        rows=layer_rows(report.layers),
        worst=[layer_row(layer) for layer in _worst(report)],
        facts=_facts(report),
        blocks=_blocks(report),
        has_reference=report.reference is not None,
        graph_meaning=_graph_meaning(report),
        skipped=_skipped(report.layers),
        recipe=report.recipe,
        manifest=report.manifest,
        hidden_weights=report.hidden_weights,
        tokens=[_shown(token) for token in report.worst_tokens],
        confusion=report.confusion,
    )
    if report.confusion is not None:
        apart = report.confusion.rows - report.confusion.agreeing
        page.confusion_meaning = (
            f"{report.confusion.agreeing} of {report.confusion.rows} rows of {report.confusion.output} have the float model's first "
            f"class" + (f"; how the other {apart} moved, the most frequent first:" if apart else ".")
        )
    if compiled is not None:
        page.passes = _passes(compiled)
        page.idle_passes = len(compiled.passes) - len(page.passes)
    if drawn:
        _draw(page, report)
    return page


def _draw(page: _Page, report: ModelReport) -> None:
    """Fills in the figures."""
    measured, page.error_meaning = _errors(report)
    measured = [layer for layer in measured if math.isfinite(layer.error or 0.0)]
    if measured:
        bars = [figures.Bar(layer.error or 0.0, layer.role, told(layer)) for layer in measured]
        page.error_bars = Markup(figures.bars(bars, "relative squared error", "layer"))
        page.heat = heat_map(measured)
    page.weights = [_histogram(pair, "weight") for pair in report.weights]
    if report.measures is not None:
        _draw_measures(page, report.measures)
    if report.compiled is not None:
        page.budget = budget(report.compiled)


def _errors(report: ModelReport) -> tuple[list[LayerRow], str]:
    """Layers with the error that tells them apart best, and what that is."""
    of_compile = [layer for layer in report.layers if layer.error is not None]
    if of_compile:
        ran = report.compiled is not None and report.compiled.calibration
        return of_compile, OF_COMPILE if ran else OF_WEIGHTS
    through_depth = [
        replace(layer, error=10 ** (-layer.depth_sqnr_db / 10), sqnr_db=layer.depth_sqnr_db)
        for layer in report.layers
        if layer.depth_sqnr_db is not None
    ]
    return through_depth, THROUGH_DEPTH


def _draw_measures(page: _Page, measures: LayerMeasures) -> None:
    page.activations = [_histogram(pair, "output") for pair in measures.activations]
    points = [
        figures.Point(place, _shown_db(error.sqnr_db), f"{error.title}: {error.sqnr_db:.1f} dB, {error.op}")
        for place, error in enumerate(measures.errors.values)
        if error.relation != TURNED
    ]
    if points:
        page.growth = Markup(figures.growth(points, "SQNR, dB", "layer, in the graph's order"))
    page.growth_meaning = f"SQNR of each layer's output with all rounding before it: how errors add up, and where. On {measures.data}."
    page.growth_rows = [
        {
            "block": block.block,
            "sqnr": f"{block.sqnr_db:.1f}",
            "worst": block.worst,
            "worst_sqnr": f"{block.worst_sqnr_db:.1f}",
        }
        for block in measures.growth
    ]


MOST_DB = 120.0
"""As an equal output is drawn: float32 tells no more apart."""


def _shown_db(sqnr_db: float) -> float:
    return min(max(sqnr_db, -MOST_DB), MOST_DB)


def _histogram(pair: HistogramPair, xlabel: str) -> dict[str, str]:
    drawn = figures.histogram(pair.edges, pair.before, pair.after, xlabel)
    return {"svg": Markup(drawn), "name": pair.name, "note": pair.note}


def _subtitle(report: ModelReport) -> str:
    found, compiled = report.inspection, report.compiled
    parts = [
        counted(found.nodes, "node"),
        f"{counted(len(found.products), 'product')}, {found.quantized} of their weights quantized",
    ]
    if compiled is not None:
        data = ", ".join(f"{key} {value}" for key, value in compiled.calibration.items())
        parts.append(f"calibration: {data or 'none needed'}")
    if report.evaluation is not None:
        parts.append(f"measured on {report.evaluation.data}")
    return " · ".join(parts)


def _facts(report: ModelReport) -> list[str]:
    found = report.inspection
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found.opsets.items())
    facts = [
        f"{found.model}: {format_bytes(found.file_bytes)}, IR {found.ir_version}, opsets {opsets}"
        + (f", by {found.producer}" if found.producer else ""),
        f"inputs {'; '.join(found.inputs)}",
        f"outputs {'; '.join(found.outputs)}",
    ]
    if report.compiled is not None and report.compiled.running:
        runs = ", ".join(f"{count} {op}" for op, count in sorted(report.compiled.running.items()))
        facts.append(f"runs as {runs}")
    if report.reference is not None:
        facts.append(f"float model {report.reference.path}: {format_bytes(report.reference.file_bytes)}")
    return facts


def _worst(report: ModelReport) -> list[LayerRow]:
    """Those with the largest errors, if any were measured."""
    measured = [layer for layer in _errors(report)[0] if layer.quantized]
    return sorted(measured, key=lambda layer: -(layer.error or 0.0))[:WORST]


def _blocks(report: ModelReport) -> list[dict[str, Any]]:
    """Operators of each block; blocks that have the same ones are one entry."""
    alike: dict[str, list[BlockOperators]] = {}
    for block in report.blocks:
        alike.setdefault(f"{block.before} {block.after}" if block.block else "", []).append(block)
    return [_block(members, report.reference is not None) for members in alike.values()]


def _block(members: list[BlockOperators], has_reference: bool) -> dict[str, Any]:
    first, last = members[0], members[-1]
    rows = [
        {"op": op, "before": first.before.get(op, 0), "after": first.after.get(op, 0)}
        for op in dict.fromkeys([*first.after, *first.before])
    ]
    before, after = sum(first.before.values()), sum(first.after.values())
    told = f"{before} -> {counted(after, 'node')}" if has_reference else counted(after, "node")
    name = first.block or "outside of blocks"
    if len(members) > 1:
        name, told = f"{name} .. {last.block}", f"{len(members)} blocks alike, each {told}"
    return {"name": name, "told": told, "rows": rows}


def _graph_meaning(report: ModelReport) -> str:
    if report.reference is None:
        return (
            "Operators of each block; give the float model (--reference MODEL) to see them before and after."
        )
    return "Operators of each block, in the float model and in this one."


def _skipped(layers: list[LayerRow]) -> list[dict[str, Any]]:
    groups: dict[str, list[LayerRow]] = {}
    for layer in layers:
        if not layer.quantized:
            groups.setdefault(layer.reason or "not said", []).append(layer)
    made = []
    for reason, members in groups.items():
        size = sum(member.bytes for member in members)
        made.append({
            "reason": reason, "count": len(members), "size": format_bytes(size) if size else "",
            "names": [member.name for member in members],
        })  # fmt: skip
    return made


def _shown(token: WorstToken) -> dict[str, Any]:
    """With white space of single tokens made visible."""
    texts = {
        name: getattr(token, name).replace(" ", "\u2423").replace("\n", "\u21b5")
        for name in ("wanted", "got")
    }
    return {**asdict(token), **texts}


def _passes(compiled: CompileReport) -> list[dict[str, Any]]:
    telling = [record for record in compiled.passes if record.modified or record.seconds >= TELLING]
    longest = max((record.seconds for record in telling), default=0.0) or 1.0
    return [
        {
            "name": record.name,
            "changed": "yes" if record.modified else "no",
            "time": format_seconds(record.seconds),
            "share": round(100 * record.seconds / longest, 1),
        }
        for record in telling
    ]


TELLING = 0.05
"""Seconds; a shorter pass that changed nothing is only counted."""
