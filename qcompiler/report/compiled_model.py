"""What a compile returns: where the model is, and all that is known of it."""

import os
from dataclasses import dataclass
from pathlib import Path

from qcompiler.errors import InputError
from qcompiler.graph import model_file
from qcompiler.report.compile_report import CompileReport
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.model_report import ModelReport, make_report, outline
from qcompiler.report.sizes import counted, format_bytes


@dataclass(frozen=True)
class CompiledModel:
    """A finished compile."""

    folder: Path
    report: CompileReport

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / model_file.MODEL_NAME

    def look(
        self, reference: str | os.PathLike[str] | None = None, data: EvaluationData | None = None
    ) -> ModelReport:
        """Everything that report.html shows, and with ``reference``, the float model, and ``data`` what ``qcompile report`` measures.

        Raises:
            InputError: a model cannot be read or run.
            CalibrationError: the data does not fit.
        """
        return make_report(self.path, None if reference is None else Path(reference), data)

    def __repr__(self) -> str:
        """One line; the report's own has every weight."""
        report = self.report
        change = f"{format_bytes(report.float_bytes)} -> {format_bytes(report.bytes)}"
        return f"<CompiledModel {self.path}: {report.recipe}, {counted(len(report.layers), 'weight')} quantized, {change}>"

    def _repr_html_(self) -> str | None:
        """For notebooks; None, and the one line, where the model is no longer there or jinja2 is not installed."""
        try:
            return outline(self.path)._repr_html_()
        except InputError:
            return None
