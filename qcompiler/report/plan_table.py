"""The plan of a compile (``--dry-run``) as a table and as JSON: what each node would become and take."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from qcompiler.graph.model_file import files_of
from qcompiler.recipe.plan import Plan
from qcompiler.report.budget_range import BudgetRange, budget_range
from qcompiler.report.fitted_table import LEAST_NAME, Column, FittedTable, Row
from qcompiler.report.folded import folded
from qcompiler.report.sizes import counted, format_bytes, format_memory, format_shape, size_change


@dataclass(frozen=True)
class PlanRow:
    """One product of the graph.

    Attributes:
        shape: (N, K); empty where the node has no weight.
        scheme: "int4 g64 asym"; None where it is left alone.
        decided_by: the line of the recipe that decided, or why it is left alone.
        bytes, planned_bytes: of the weight, now and afterwards.
    """

    name: str
    role: str
    op: str
    shape: tuple[int, ...]
    scheme: str | None
    algorithm: str | None
    decided_by: str
    bytes: int
    planned_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanForecast:
    """What the compile would take and give; all in bytes.

    Attributes:
        model_bytes, planned_bytes: the model with its data, now and afterwards.
        peak_bytes: anonymous memory at the peak.
        bits_per_weight: over the weights that would be quantized, scales and zero points included.
        budget: what the weights can take where bits are still to be given out; sizes are then of the budget, if there is one.
    """

    model_bytes: int
    planned_bytes: int
    peak_bytes: int
    bits_per_weight: float
    quantized: int
    left_alone: int
    budget: BudgetRange | None = None


def plan_rows(plan: Plan) -> list[PlanRow]:
    """Every product: those to be quantized, in graph order, then those left alone."""
    rows = [
        PlanRow(
            planned.weight.name,
            "/".join(dict.fromkeys(use.role.value for use in planned.weight.uses)),
            "/".join(dict.fromkeys(use.node.op_type for use in planned.weight.uses)),
            planned.weight.shape,
            planned.scheme.label,
            planned.algorithm,
            planned.settings.decided_by,
            planned.weight.float_bytes,
            planned.stored_bytes,
            tuple(planned.notes),
        )
        for planned in plan.quantized
    ]
    rows += [
        PlanRow(
            left.name, left.role.value, left.op, left.shape, None, None, left.reason, left.bytes, left.bytes
        )
        for left in plan.skipped
    ]
    return rows


def forecast(plan: Plan, model: Path, peak_bytes: int) -> PlanForecast:
    """Sizes and memory of a compile of the model file.

    Raises:
        InputError: the model cannot be read.
    """
    now = sum(file.stat().st_size for file in files_of(model).values())
    weights = sum(planned.weight.size for planned in plan.quantized)
    rest = max(now - plan.float_bytes, 0)
    budget = budget_range(plan, rest)
    stored = plan.stored_bytes if budget is None or budget.expected is None else budget.expected
    return PlanForecast(
        now, rest + stored, peak_bytes, 8 * stored / weights, len(plan.quantized), len(plan.skipped), budget
    )


def plan_json(plan: Plan, model: Path, peak_bytes: int, refusals: list[str]) -> dict[str, Any]:
    """The rows, the forecast and what stands in the way of a compile, as plain values."""
    ahead = forecast(plan, model, peak_bytes)
    return {
        "model": str(model),
        "nodes": [asdict(row) for row in plan_rows(plan)],
        "forecast": asdict(ahead),
        "warnings": _warnings(plan, ahead),
        "refusals": refusals,
    }


_COLUMNS = (
    Column("name", 0, "name", LEAST_NAME),
    Column("role", 4, "words", 6),
    Column("op", 3, "words", 6),
    Column("N x K", 2, right=True),
    Column("stored as", 0, "words", 20),
    Column("bytes", 0, right=True),
    Column("decided by", 1, "words", 16, below=True),
)


def plan_table(plan: Plan, model: Path, peak_bytes: int, refusals: list[str]) -> RenderableType:
    """The rows, and under them the forecast. Equal reasons for nodes without a weight share one line."""
    rows = []
    for row in folded(plan_rows(plan), _likeness):
        size = format_bytes(row.bytes) if row.bytes else ""
        if row.scheme is not None:
            size = f"{format_bytes(row.bytes)} -> {format_bytes(row.planned_bytes)}"
        stored = "float" if row.scheme is None else f"{row.scheme}, {row.algorithm}"
        reason = "; ".join((row.decided_by, *row.notes))
        cells = (row.name, row.role, row.op, format_shape(row.shape), stored, size, reason)
        left = row.scheme is None
        rows.append(Row(cells, "dim" if left else "", tell=left or bool(row.notes)))
    ahead = forecast(plan, model, peak_bytes)
    lines = (
        f"{counted(ahead.quantized, 'weight')} to quantize at {ahead.bits_per_weight:.2f} bits each, "
        f"{counted(ahead.left_alone, 'node')} left alone",
        f"size {format_bytes(ahead.model_bytes)} -> about {format_bytes(ahead.planned_bytes)} "
        f"({size_change(ahead.model_bytes, ahead.planned_bytes, 1)})",
        f"peak memory about {format_memory(ahead.peak_bytes)}; calibration data {_data(plan)}",
        *([] if ahead.budget is None else _budget_lines(ahead.budget)),
        *(f"warning: {warning}" for warning in _warnings(plan, ahead)),
        *(f"a compile will be refused: {refusal}" for refusal in refusals),
    )
    return Group(FittedTable(_COLUMNS, rows), "", *map(Text, lines))


def _budget_lines(budget: BudgetRange) -> list[str]:
    """What is given out, and what that can come to."""
    bounds = [f"a predicted KL of at most {budget.max_kl:g}"] if budget.max_kl else []
    bounds += [f"a budget of {budget.budget}"] if budget.budget else []
    bits = ", ".join(map(str, budget.bits))
    shown = "shown are" if budget.expected is None else "the rows show"
    ends = (budget.least, budget.most)
    widths = " to ".join(f"{8 * end / budget.weights:.2f}" for end in ends)
    sizes = " to ".join(format_bytes(end + budget.rest) for end in ends)
    return [
        f"mixed: a compile gives out the bits ({bits}) by what the model does on data, for {' and '.join(bounds)}; {shown} the recipe's",
        f"mixed: possible are {widths} bits a weight, the model then about {sizes}",
    ]


def _warnings(plan: Plan, ahead: PlanForecast) -> list[str]:
    shortfall = None if ahead.budget is None else ahead.budget.shortfall
    return [*plan.warnings, *([] if shortfall is None else [shortfall])]


def _data(plan: Plan) -> str:
    """Whether data are needed, and what for: ``needed, by lm_head (mse), 28 weights (awq + mse)``."""
    said = [] if plan.mixed is None else ["mixed"]
    said += ["the correction of biases"] if plan.corrects_biases else []
    for what, names in plan.users_of_data.items():
        said.append(f"{names[0] if len(names) == 1 else counted(len(names), 'weight')} ({what})")
    return f"needed, by {', '.join(said)}" if said else "not needed"


def _likeness(row: PlanRow) -> tuple[str, ...] | None:
    """Role, operator and reason of a node without a weight."""
    return None if row.scheme is not None or row.bytes else (row.role, row.op, row.decided_by)
