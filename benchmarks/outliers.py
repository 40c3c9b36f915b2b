"""How far the largest activation at each linear's input stands out, before and after ``transform: rotate``; and that the function stays.

python -m benchmarks.outliers                  SmolLM2-135M off-grid, one window of 512 tokens
python -m benchmarks.outliers --form tiny      the embedded model: seconds

For each linear: the largest |x| of a row over the root of the row's mean square, the mean over all rows and the largest; then the mean
squared error of rounding each row to 8 and to 4 bits with one scale a row (symmetric, round to nearest), over the mean square. Means over
the linears of a kind.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from benchmarks.measure.results import markdown
from benchmarks.quality import FORMS, subject
from qcompiler.api import Options, compile
from qcompiler.calibration.feeds import input_specs
from qcompiler.calibration.fill import complete_feed
from qcompiler.graph import model_file
from qcompiler.graph.census import take_census
from qcompiler.graph.extract import Piece
from qcompiler.graph.weights import Role
from qcompiler.passes.normalize import Normalize

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outliers:
    """Of the rows that one linear, or the linears of one kind on average, read.

    Attributes:
        mean, largest: of max |x| over the root mean square, over the rows.
        error_8, error_4: relative squared error of rounding each row with one scale.
    """

    mean: float
    largest: float
    error_8: float
    error_4: float


def outliers(rows: Rows) -> Outliers:
    """Of rows [M, K]."""
    peaks = np.abs(rows).max(axis=1) / np.sqrt(np.mean(np.square(rows), axis=1))
    return Outliers(
        float(peaks.mean()), float(peaks.max()), _rounding_error(rows, 8), _rounding_error(rows, 4)
    )


def _rounding_error(rows: Rows, bits: int) -> float:
    scale = np.abs(rows).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    error = rows - np.rint(rows / scale) * scale
    return float(np.sum(np.square(error, dtype=np.float64)) / np.sum(np.square(rows, dtype=np.float64)))


def inputs_of(path: Path, ids: npt.NDArray[np.int64]) -> Iterator[tuple[str, Rows, Rows]]:
    """(name of a linear, rows [M, K] that it reads, the model's first output)."""
    model = model_file.load(path)
    Normalize()(model)
    uses = [(weight, use) for weight in take_census(model).weights for use in weight.uses]
    taps = {use.node.inputs[0]: weight.name for weight, use in uses[::-1] if use.role is not Role.EMBEDDING}
    read = [value for value in taps if value is not None]
    feed = complete_feed({"input_ids": ids}, input_specs(model))
    inputs: dict[str, ir.Value] = {value.name or "": value for value in model.graph.inputs}
    wanted = [*read, model.graph.outputs[0]]
    found = Piece(model, list(model.graph), list(inputs.values()), wanted).run(
        {inputs[n]: a for n, a in feed.items()}
    )
    for value in read:
        yield taps[value], found[value].reshape(-1, found[value].shape[-1]), found[wanted[-1]]


def table(form: str) -> str:
    """Markdown: a row for each kind of linear."""
    source = subject(form, None)
    ids = np.asarray(source.ids)[:1]
    with tempfile.TemporaryDirectory() as folder:
        rotated = compile(
            source.built.path, "w4a16-rtn", settings=["transform=rotate"], output=Path(folder) / "out",
            options=Options(stop_after="rotate", memory_limit=1 << 40),
        )  # fmt: skip
        kinds: dict[str, list[list[Outliers]]] = defaultdict(lambda: [[], []])
        logits: list[npt.NDArray[np.float64]] = []
        for index, path in enumerate((source.built.path, rotated.path)):
            for name, rows, last in inputs_of(path, ids):
                kinds[name.rpartition(".")[2]][index].append(outliers(rows))
                logits[index:] = [last.astype(np.float64)]
    body = []
    for kind, (before, after) in kinds.items():
        if not before:
            continue  # a product that rotate made
        cells = [f"{x:.3g} → {y:.3g}" for x, y in zip(_mean(before), _mean(after), strict=True)]
        body.append([kind, *cells])
    error = np.linalg.norm(logits[1] - logits[0]) / np.linalg.norm(logits[0])
    head = ["input of", "max / rms, mean over rows", "largest", "error at 8 bits", "at 4 bits"]
    return f"{markdown(head, body)}\n\nlogits differ by {error:.1e} (relative norm)"


def _mean(found: list[Outliers]) -> list[float]:
    return [float(column) for column in np.mean([astuple(each) for each in found], axis=0)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--form", choices=FORMS, default="off-grid")
    print(table(parser.parse_args().form))


if __name__ == "__main__":
    main()
