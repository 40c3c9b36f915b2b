"""Peak memory of this process: anonymous, which the system cannot drop, unlike mapped files; and resident, which counts both."""

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

INTERVAL = 0.02  # seconds between readings: short against the life of any large array of a compile


@dataclass(frozen=True)
class HeldMemory:
    """Bytes. Where the system is not Linux, ``anonymous`` too is the whole resident peak."""

    anonymous: int
    resident: int


class PeakMemory:
    """A context that watches the process from a thread.

    Args:
        interval: seconds between readings; the thread reads while others compute without Python's lock.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._peak = HeldMemory(0, 0)
        self._lock = threading.Lock()
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
        self.peak()

    @property
    def peak_bytes(self) -> int:
        """The most anonymous memory seen so far."""
        return self._peak.anonymous

    def peak(self) -> HeldMemory:
        """The most seen so far of either, now included."""
        now = held_memory()
        with self._lock:  # the watching thread asks too
            before = self._peak
            self._peak = HeldMemory(max(before.anonymous, now.anonymous), max(before.resident, now.resident))
            return self._peak

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.peak()


def held_memory() -> HeldMemory:
    """What this process holds now."""
    if sys.platform != "linux":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return HeldMemory(peak, peak)
    found = {"RssAnon:": 0, "VmRSS:": 0}
    with Path("/proc/self/status").open(encoding="ascii") as status:
        for line in status:
            key, *rest = line.split(maxsplit=2)
            if key in found:
                found[key] = int(rest[0]) * 1024
    return HeldMemory(found["RssAnon:"], found["VmRSS:"])
