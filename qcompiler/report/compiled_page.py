"""report.html of a compile that has just finished: what the compile itself found, nothing measured anew."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qcompiler.errors import CalibrationError, InputError

NEEDED = "pip install 'qcompiler[compile]'"


def write_compiled_page(source: Path, staged: Path, place: Path, tell: Callable[[str], None]) -> None:
    """Of the output in ``staged``, which is to become ``place``, beside its report.json.

    Where what draws it is not installed, or it cannot look into the model, that is told, and there is no page.

    Args:
        source: the float model.
    """
    try:
        from qcompiler.report.page.page import NAME, write_page
    except ImportError as error:
        tell(f"no report.html: it needs {error.name}; {NEEDED}, then qcompile report {place}")
        return
    from qcompiler.report.model_report import make_report

    try:
        report = make_report(staged, source, known_source=True)
    except (
        InputError,
        CalibrationError,
    ) as error:  # a page that cannot be drawn is no reason to lose a compile
        tell(f"no report.html: {error}")
        return
    final = str(place / Path(report.inspection.model).name)
    write_page(replace(report, inspection=replace(report.inspection, model=final)), staged / NAME)
