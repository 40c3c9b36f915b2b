"""Loads in fresh processes: a second session in one process finds memory and code that the first one left."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from qcompiler.bench.alternate import alternate
from qcompiler.bench.contender import Contender
from qcompiler.bench.result import LoadResult, Loads, Spread, TimesAsFast
from qcompiler.bench.workloads import Workload
from qcompiler.errors import ResourceError

WORKER = "qcompiler.bench.load_worker"


def measure_loads(
    contenders: Sequence[Contender],
    workloads: Sequence[Sequence[Workload]],
    pairs: int,
    progress: Callable[[int, int], None],
) -> LoadResult:
    """Load each ``pairs`` times, in turn, and run it once on each of its workloads.

    The model's files are in the system's cache of files: the caller has run it before.

    Raises:
        ResourceError: a process ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        requests = [
            {"contender": asdict(contender), "feeds": _saved(Path(folder, str(place)), own)}
            for place, (contender, own) in enumerate(zip(contenders, workloads, strict=True))
        ]
        found = alternate([partial(_load, request) for request in requests], pairs, progress)
    loads = [_summary(each) for each in found]
    if len(loads) == 1:
        return LoadResult(pairs, loads[0], None, None)
    seconds = [[load["seconds"] for load in each] for each in found]
    return LoadResult(pairs, loads[0], loads[1], TimesAsFast.of(seconds[0], seconds[1]))


def _saved(folder: Path, workloads: Sequence[Workload]) -> list[tuple[str, list[str]]]:
    """Feeds as files (path, names of the inputs in order): a name may be none that a file of arrays takes."""
    folder.mkdir()
    saved = []
    for workload in workloads:
        path = folder / f"{workload.name}.npz"
        np.savez(path, *workload.feed.values())
        saved.append((str(path), list(workload.feed)))
    return saved


def _load(request: dict[str, Any]) -> dict[str, float]:
    # The same modules as here, however they came onto the path.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", WORKER, json.dumps(request)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ResourceError(
            f"{request['contender']['path']}: a fresh process that loads it ended with status {done.returncode}: {said}; "
            "free memory, or leave loads out with --loads 0"
        )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _summary(found: Sequence[dict[str, float]]) -> Loads:
    peaks = {key: int(median(load[key] for load in found)) for key in found[0] if key.endswith("_bytes")}
    return Loads(Spread.of([load["seconds"] for load in found]), **peaks)
