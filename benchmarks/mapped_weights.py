"""Sessions on weights in the kernels' own order (--mapped-weights), against the same model without: memory of two processes, creation.

python -m benchmarks.mapped_weights                        a random decoder of 30 million weights
python -m benchmarks.mapped_weights --model MODEL.onnx     yours: its inputs have to be integers, such as tokens
python -m benchmarks.mapped_weights --rounds 5 --json

Each round starts two processes for each form, in turn. A process creates a session and runs it once on one token; when both have, each
says what it holds: anonymous memory more than before the session, and how much of the model's data file it has in memory, all of it
(resident) and its share (a page that n processes map counts 1 / n). Medians over all processes. `qcompile bench MAPPED --against STORED`
compares the speed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import synthetic
from benchmarks.measure.results import markdown

FORMS = {"rows": False, "mapped": True}
SIZES = synthetic.DecoderSizes(1024, 4096, 2, 8_000)


def main() -> None:
    """Compile both forms and measure them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--recipe", default="w4a16-rtn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child is not None:
        serve(asked.child)
        return
    with tempfile.TemporaryDirectory(dir=".") as place:  # not where the system keeps files in memory
        folder = Path(place)
        model = asked.model or synthetic.decoder(folder / "model", 30_000_000, SIZES)
        compiled = {
            form: _compile(model, asked.recipe, folder / form, mapped) for form, mapped in FORMS.items()
        }
        found: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
        for _ in range(asked.rounds):
            for form, path in compiled.items():
                found[form] += two_processes(path)
    medians = {
        form: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for form, rows in found.items()
    }
    if asked.json:
        print(json.dumps(medians))
        return
    header = [
        "weights",
        "creation, s",
        "anonymous, MB",
        "of the data file resident, MB",
        "and shared out, MB",
    ]
    rows = [
        [
            form,
            f"{row['create_s']:.2f}",
            *(f"{row[name]:.0f}" for name in ("anonymous_mb", "resident_mb", "share_mb")),
        ]
        for form, row in medians.items()
    ]
    print(markdown(header, rows))


def _compile(model: Path, recipe: str, output: Path, mapped: bool) -> Path:
    import qcompiler

    return qcompiler.compile(model, recipe, output=output, target="qcompiler", mapped_weights=mapped).path


def two_processes(model: Path) -> list[dict[str, float]]:
    """What each of two processes with a session on the model holds while both live."""
    command = [sys.executable, "-m", "benchmarks.mapped_weights", "--child", str(model)]
    children: list[subprocess.Popen[str]] = []
    try:
        for _ in range(2):  # one after the other: creation is measured alone
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            children.append(child)
            assert child.stdout is not None
            if child.stdout.readline().strip() != "ready":
                raise SystemExit(f"{model}: its process failed; see above")
        return [_ask(child) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def _ask(child: "subprocess.Popen[str]") -> dict[str, float]:
    """What a process says when it is asked; it goes on living."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    said: dict[str, float] = json.loads(child.stdout.readline())
    return said


def serve(model: Path) -> None:
    """A process with a session: says "ready", and when asked by a line, what it holds."""
    from qcompiler.runtime import create_session

    before, start = anonymous_bytes(), time.perf_counter()
    session = create_session(model)
    seconds = time.perf_counter() - start
    session.run(
        None, {given.name: np.zeros([1] * len(given.shape), np.int64) for given in session.get_inputs()}
    )
    print("ready", flush=True)
    sys.stdin.readline()
    resident, share = data_file_bytes(f"{model}.data")
    said = {
        "create_s": seconds,
        "anonymous_mb": (anonymous_bytes() - before) / 1e6,
        "resident_mb": resident / 1e6,
        "share_mb": share / 1e6,
    }
    print(json.dumps(said), flush=True)
    sys.stdin.readline()  # the other process is asked


def anonymous_bytes() -> int:
    """Of this process, in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def data_file_bytes(path: str) -> tuple[int, int]:
    """Of a file that this process maps: bytes in memory, and its share of them."""
    resident = share = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # a mapping begins
            inside = words[-1] == str(Path(path).resolve())
        elif inside and words[0] == "Rss:":
            resident += int(words[1]) * 1024
        elif inside and words[0] == "Pss:":
            share += int(words[1]) * 1024
    return resident, share


if __name__ == "__main__":
    main()
