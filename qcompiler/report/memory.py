"""Peak anonymous memory of this process: what the system cannot drop, unlike mapped files."""

import sys
import threading
from pathlib import Path
from types import TracebackType

INTERVAL = 0.02  # seconds between readings: short against the life of any large array here


class PeakMemory:
    """A context that watches the process from a thread.

    Attributes:
        peak_bytes: the most seen so far. On Linux anonymous memory (RssAnon); elsewhere the whole resident peak.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, anonymous_bytes())

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())


def anonymous_bytes() -> int:
    """Anonymous resident memory now, in bytes."""
    if sys.platform != "linux":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with Path("/proc/self/status").open(encoding="ascii") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
