"""What int8 costs and gains on models of four kinds, beside ONNX Runtime's own quantizers in the same run.

python -m benchmarks.int8_models                         all models; goes on where it stopped
python -m benchmarks.int8_models --models minilm         some of them
python -m benchmarks.int8_models --again                 quantized anew
python -m benchmarks.int8_models --json                  the rows; --markdown: the table for the docs

Models and data are those of models/: text recognition, digits, sentence embeddings (EfficientNet-Lite0: ``int8_static``). Every quantizer
is a process of its own, whose seconds count its start. What a sample takes is measured in every run, of all of a model's files in turn in
one process: the least time that one thread computed.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import child
from benchmarks.measure.evaluation import model_bytes
from benchmarks.measure.int8_subjects import SUBJECTS, Entry, Subject
from benchmarks.measure.interleaved import least_seconds, quiet_session
from benchmarks.measure.results import OUT, Results, markdown

JSON = OUT / "int8_models.json"
MODELS = OUT / "int8_models"
FLOAT = "float"
TURN = 0.05  # seconds: slow models shall not leave fast ones few runs


def measure(subject: Subject, results: Results, again: bool, seconds: float) -> None:
    """Quantize and judge what is not finished; then time the float model and all entries, so many seconds together."""
    source = subject.build()
    paths = {FLOAT: source}
    results.put(_key(subject, FLOAT), subject.judge(source) | {"what": FLOAT, "bytes": model_bytes(source)})
    for entry in subject.entries:
        key = _key(subject, entry.key)
        folder = MODELS / key
        paths[entry.key] = folder / "model.onnx"
        if not again and key in results and paths[entry.key].exists():
            continue
        print(f"{subject.name}: {entry.what}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = child.run(entry.job, _arguments(subject, entry, source, folder))
        row = made | {"what": entry.what, "bytes": model_bytes(paths[entry.key])}
        results.put(key, row | subject.judge(paths[entry.key]))
    feed = subject.sample()
    ours = {entry.key for entry in subject.entries if entry.target == "qcompiler"}
    sessions = [quiet_session(path, 1, key in ours) for key, path in paths.items()]
    for key, least in zip(paths, least_seconds(sessions, feed, seconds, TURN, time.thread_time), strict=True):
        row = results.rows[_key(subject, key)]
        results.put(_key(subject, key), row | {"milliseconds": least * 1e3})


def _key(subject: Subject, entry: str) -> str:
    return f"{subject.name}/{entry}"


def _arguments(subject: Subject, entry: Entry, source: Path, output: Path) -> dict[str, Any]:
    data = str(subject.calibration())
    if entry.ours:
        given = {"model": str(source), "output": str(output), "recipe": entry.method, "calibration": data}
        return given | {"settings": list(entry.settings), "target": entry.target}
    if subject.peers_read is not None:
        raised = MODELS / f"{subject.name}-peers.onnx"
        subject.peers_read(source, raised)
        source = raised
    given = {"model": str(source), "output": str(output), "data": data, "method": entry.method}
    return given | {"shapes": subject.peers_infer_shapes}


HEADS = ["", "quality", "MB", "CPU ms", "float / it", "fastest ORT / it", "seconds", "peak GB"]


def table(results: Results, subjects: Sequence[Subject] = SUBJECTS) -> str:
    """Markdown of the models whose rows are finished: float, peers, ours.

    ``float / it`` and ``fastest ORT / it`` are ratios of times: above 1 it is faster.
    """
    lines = []
    for subject in subjects:
        keys = [_key(subject, key) for key in (FLOAT, *(entry.key for entry in subject.entries))]
        rows = [results.rows[key] for key in keys if "milliseconds" in results.rows.get(key, {})]
        if len(rows) < len(keys):
            continue
        peers = [row for row, entry in zip(rows[1:], subject.entries, strict=True) if not entry.ours]
        fastest = min(row["milliseconds"] for row in peers)
        base = rows[0]["milliseconds"]
        for row in rows:
            spent = row["milliseconds"]
            made = (
                [f"{row['wall_seconds']:.0f}", f"{row['peak_anonymous_bytes'] / 1e9:.2f}"]
                if "wall_seconds" in row
                else ["", ""]
            )
            name = f"**{subject.name}**: {row['what']}" if row is rows[0] else row["what"]
            lines.append(
                [name, subject.said(row), f"{row['bytes'] / 1e6:.1f}", f"{spent:.3g}", f"{base / spent:.2f}",
                 f"{fastest / spent:.2f}", *made]
            )  # fmt: skip
    return markdown(HEADS, lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [subject.name for subject in SUBJECTS]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--results", type=Path, default=JSON, help="where finished rows are kept")
    parser.add_argument("--again", action="store_true", help="quantize anew what is finished")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of timing, of all files of a model together"
    )
    parser.add_argument("--json", action="store_true", help="print the rows")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    results = Results(given.results)
    subjects = [subject for subject in SUBJECTS if subject.name in given.models]
    for subject in subjects:
        measure(subject, results, given.again, given.seconds)
    if given.json:
        print(json.dumps(results.rows, indent=1))
    elif given.markdown:
        print(table(results, subjects))
    else:
        for subject in subjects:
            for key in (FLOAT, *(entry.key for entry in subject.entries)):
                row = results.rows[_key(subject, key)]
                print(
                    f"{subject.name:16} {row['what']:44} {subject.said(row):28} {row['bytes'] / 1e6:7.1f} MB {row['milliseconds']:8.2f} ms"
                )


if __name__ == "__main__":
    main()
