"""A process that loads one model, runs it once on each workload, and tells what that took.

python -m qcompiler.bench.load_worker '{"contender": {"path": ..., "library": true, "threads": 2}, "feeds": [["x.npz", ["input_ids"]]]}'

Standard output is JSON: seconds to create the session, and peaks of memory in bytes above what the process held before.
"""

import json
import sys
import time

import numpy as np

from qcompiler.bench.contender import Contender, timed_run
from qcompiler.report.memory import PeakMemory, held_memory

INTERVAL = 0.002  # seconds between readings: sessions are created in a tenth of a second


def main() -> None:
    """Command line."""
    request = json.loads(sys.argv[1])
    feeds = []
    for path, names in request["feeds"]:
        with np.load(path) as arrays:
            feeds.append({name: arrays[f"arr_{place}"] for place, name in enumerate(names)})
    with PeakMemory(INTERVAL) as memory:
        before = held_memory()
        start = time.perf_counter()
        session = Contender(**request["contender"]).open()
        seconds = time.perf_counter() - start
        loading = memory.peak()
        for feed in feeds:
            timed_run(session, feed)()
        running = memory.peak()
    print(
        json.dumps(
            {
                "seconds": seconds,
                "load_anonymous_bytes": loading.anonymous - before.anonymous,
                "load_resident_bytes": loading.resident - before.resident,
                "run_anonymous_bytes": running.anonymous - before.anonymous,
                "run_resident_bytes": running.resident - before.resident,
            }
        )
    )


if __name__ == "__main__":
    main()
