"""Where the tokenizer of models that are compared is: a compile copies none into its folder."""

from pathlib import Path

from qcompiler.calibration.data import tokenizer_beside
from qcompiler.errors import CalibrationError
from qcompiler.report.origin import origin_beside, origin_folders


def find_tokenizer(given: Path | None, text: Path | None, *models: Path) -> Path | None:
    """What was given; else tokenizer.json beside one of the models, else beside the one that they were compiled from.

    Args:
        text: what is read with it; without one, none need be there.
        models: their files, the reference first.
    Raises:
        CalibrationError: there is a text, and nothing to read it with.
    """
    if given is not None:
        return given
    for model in models:
        found = tokenizer_beside(model)
        if found is not None:
            return found
    for model in models:
        source = origin_beside(model)
        if source is not None and (found := tokenizer_beside(source)) is not None:
            return found
    if text is None:
        return None
    beside = ", ".join(dict.fromkeys(str(model.absolute().parent) for model in models))
    around = ", ".join(dict.fromkeys(str(folder) for model in models for folder in origin_folders(model)))
    sources = f", and beside the model that it was compiled from in {around}" if around else ""
    raise CalibrationError(
        f"{text}: text needs a tokenizer; looked for tokenizer.json in {beside}{sources}; give --tokenizer FILE"
    )
