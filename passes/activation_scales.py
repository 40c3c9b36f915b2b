"""What the codes of each value of a flow of integers mean: the ranges that calibration saw, shared where values are only moved, and what
the recipe says of single tensors.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.graph.integer_flow import IntegerFlow, clipped_behind, range_does
from qcompiler.nearest import nearest
from qcompiler.quant.activation_codes import ActivationCodes, bits_of
from qcompiler.quant.ranges import Range
from qcompiler.recipe.tensors import ActivationSettings

Observe = Callable[[ir.Model, Sequence[ir.Value], int, bool], Mapping[str, Range]]
"""The ranges of values by name, over calibration data; those that were never reached are missing. For codes of so many bits, symmetric
ones or not."""


def observed_ranges(
    model: ir.Model, flow: IntegerFlow, settings: ActivationSettings, observe: Observe
) -> dict[str, Range]:
    """Of the flow's values by name, one run over the data for each width and symmetry of codes; those never reached are missing."""
    kinds: dict[tuple[int, bool], list[ir.Value]] = {}
    for value in (*flow.entries, *flow.values):
        kind, symmetric = settings.form_of(_name(value))
        kinds.setdefault((bits_of(kind), symmetric), []).append(value)
    seen: dict[str, Range] = {}
    for (bits, symmetric), members in kinds.items():
        seen |= observe(model, members, bits, symmetric)
    return seen


def unreached(flow: IntegerFlow, settings: ActivationSettings, seen: Mapping[str, Range]) -> list[ir.Value]:
    """The values that have no range: calibration did not see them, and the recipe says none."""
    values = (*flow.entries, *flow.values)
    return [value for value in values if _name(value) not in seen and settings.fixed(_name(value)) is None]


def check_reached(missing: Sequence[str]) -> None:
    """Refuses values without a range, by their names.

    Raises:
        CalibrationError: there are such.
    """
    if missing:
        others = (
            f" (and {', '.join(missing[1:4])}{', ..' if len(missing) > 4 else ''})" if missing[1:] else ""
        )
        raise CalibrationError(
            f"{missing[0]}: calibration data never reached it, so that it has no range{others}; "
            "give data that does, a range for it (tensors:), or a rule with quantize: false for what reads it"
        )


def choose_codes(
    flow: IntegerFlow,
    settings: ActivationSettings,
    ranges: Mapping[str, Range],
    tell: Callable[[str], None],
) -> dict[ir.Value, ActivationCodes]:
    """Of all values of the flow; ``tell`` is called with a line on what a user should know.

    Args:
        ranges: what ``observed_ranges`` found.
    Raises:
        CalibrationError: data never reached some.
        RecipeError: the recipe says of a tensor what cannot be.
    """
    values = [*flow.entries, *flow.values]
    forms = {value: settings.form_of(_name(value)) for value in values}
    fixed = {value: settings.fixed(_name(value)) for value in values}
    seen = dict(ranges)
    for line in _still_values(
        {
            _name(value): seen[_name(value)]
            for value in values
            if fixed[value] is None and _name(value) in seen
        }
    ):
        tell(line)
    clipped = {_name(value): seen.get(_name(last)) for value, last in clipped_behind(flow).items()}
    seen |= {name: found for name, found in clipped.items() if found is not None}
    check_reached([_name(value) for value in unreached(flow, settings, seen)])
    codes = {}
    for value in values:
        given = fixed[value]
        found = seen[_name(value)] if given is None else given
        codes[value] = found if isinstance(found, ActivationCodes) else _covering(value, found, forms[value])
    order = {value: place for place, value in enumerate(values)}
    for group in flow.together:
        members = sorted(group, key=order.__getitem__)
        _share(members, flow, forms, fixed, seen, codes)
    return codes


def _still_values(seen: Mapping[str, Range]) -> list[str]:
    """A line on the tensors of which calibration saw one number alone."""
    names = [name for name, found in seen.items() if found.lowest == found.highest]
    if not names:
        return []
    only = f"{seen[names[0]].lowest:g}"
    more = (
        f" (and {len(names) - 1} more: {', '.join(names[1:4])}{', ..' if len(names) > 4 else ''})"
        if names[1:]
        else ""
    )
    return [
        f"{names[0]}: calibration saw nothing but {only} there{more}, and what comes otherwise is rounded to that or coarsely; "
        "give data in which it varies, or a range for it (tensors:)"
    ]


def _covering(value: ir.Value, found: Range, form: tuple[object, bool]) -> ActivationCodes:
    try:
        return ActivationCodes.covering(found, *form)  # type: ignore[arg-type]  # of ActivationSettings.form_of
    except ValueError as error:
        raise CalibrationError(
            f"{_name(value)}: {error}; look at the model's outputs on this data"
        ) from error


def _share(
    members: Sequence[ir.Value],
    flow: IntegerFlow,
    forms: Mapping[ir.Value, tuple[object, bool]],
    fixed: Mapping[ir.Value, Range | ActivationCodes | None],
    seen: Mapping[str, Range],
    codes: dict[ir.Value, ActivationCodes],
) -> None:
    """One scale for values that only move: what the recipe gives one of them, else a range that covers all.

    A value keeps its own where a Relu or Clip would be lost by that, or its type is another; ONNX Runtime rescales it.
    """
    said = [given for value in members if (given := fixed[value]) is not None]
    exact = next((given for given in said if isinstance(given, ActivationCodes)), None)
    ranges = [given for given in said if isinstance(given, Range)] or [
        seen[_name(value)] for value in members if fixed[value] is None
    ]
    for value in members:
        if fixed[value] is not None:
            continue
        shared = exact if exact is not None else _covering(value, _joined(ranges), forms[value])
        same_form = shared.kind == codes[value].kind
        if same_form and (value not in flow.absorbed or absorbs(flow.absorbed[value], shared)):
            codes[value] = shared


def _joined(ranges: Iterable[Range]) -> Range:
    first, *others = ranges
    for other in others:
        first = first.joined(other)
    return first


def absorbs(relu: ir.Node, codes: ActivationCodes) -> bool:
    """Whether rounding to these codes does what the Relu or Clip does."""
    covered = codes.covered
    # The last code may mean a rounding more than the Clip's bound, less than half a step.
    return range_does(relu, covered.lowest, covered.highest - float(codes.scale) / 2)


def float_tensors(model: ir.Model, settings: ActivationSettings) -> set[ir.Value]:
    """The values that the recipe leaves float; none may be unknown to it.

    Raises:
        RecipeError: the recipe names a tensor that the model does not have, or a weight.
    """
    graph = model.graph
    graphs = (graph, *graph.subgraphs())
    values = [
        value for each in graphs for value in (*each.inputs, *(out for node in each for out in node.outputs))
    ]
    names = {value.name: value for value in values if value.name}
    for said in settings.tensors:
        if any(said.holds(name) for name in names):
            continue
        if said.name in graph.initializers:
            raise RecipeError(
                f"tensors: {said.name}: is a constant; how weights are stored is said by rules, leave it out here"
            )
        if said.is_pattern:
            raise RecipeError(
                f"tensors: {said.name}: matches no tensor of the model; qcompile inspect lists inputs and nodes"
            )
        raise RecipeError(
            f"tensors: {said.name}: the model has no such tensor; {nearest(said.name, names, alike=0.0)}"
        )
    return {
        value
        for name, value in names.items()
        if (found := settings.of(name)) is not None and found.quantize is False
    }


def idle_tensors(codes: Collection[ir.Value], settings: ActivationSettings) -> list[str]:
    """A line on each tensor of the recipe that nothing rounds."""
    return [
        f"tensors: {said.name}: nothing rounds it, so that what is said of it has no effect"
        for said in settings.tensors
        if said.quantize is not False and not any(settings.of(_name(value)) is said for value in codes)
    ]


def _name(value: ir.Value) -> str:
    return value.name or ""
