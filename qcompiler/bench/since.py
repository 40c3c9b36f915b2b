"""A benchmark beside an earlier one, from its JSON: what a new version, machine or recipe changed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from qcompiler.bench.result import Benchmark, Change, Since, WorkloadResult
from qcompiler.errors import InputError


def read_earlier(path: Path) -> dict[str, Any]:
    """The JSON of an earlier ``qcompile bench --json``.

    Raises:
        InputError: it is none.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        for workload in content["workloads"]:
            spread = workload["model"]["seconds"]
            (
                workload["name"],
                workload["shapes"],
                float(spread["median"]),
                float(spread["p10"]),
                float(spread["p90"]),
            )
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the JSON of an earlier qcompile bench --json"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no JSON of qcompile bench --json; make one with it") from error
    return dict(content)


def beside_earlier(found: Benchmark, path: Path, earlier: dict[str, Any]) -> Benchmark:
    """With each workload of the model beside the same workload then."""
    then = {workload["name"]: workload for workload in earlier["workloads"]}
    changes, left_out = (
        [],
        [name for name in then if name not in {workload.name for workload in found.workloads}],
    )
    for workload in found.workloads:
        before = then.get(workload.name)
        if before is None or before["shapes"] != workload.shapes:
            left_out.append(workload.name)
        else:
            changes.append(_change(workload, before["model"]["seconds"]))
    runtime, compiler = (str(earlier.get(key, "")) for key in ("onnxruntime", "qcompiler"))
    return replace(found, since=Since(str(path), runtime, compiler, changes, left_out))


def _change(workload: WorkloadResult, then: dict[str, float]) -> Change:
    now = workload.model.seconds
    apart = then["p10"] > now.p90 or now.p10 > then["p90"]
    return Change(workload.name, then["median"], now.median, then["median"] / now.median, apart)
