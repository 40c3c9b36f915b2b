"""Arrays of each sample, in memory up to a limit and past it in a file: calibration's feeds, and activations at the borders of segments."""

import math
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from qcompiler.graph.disk import writing

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Key = TypeVar("Key", bound=Hashable)


class Borders(Generic[Key]):
    """Arrays of each sample by key, a value of the graph; past ``limit`` bytes in one file whose freed places are used again."""

    def __init__(self, samples: int, folder: Path, limit: int) -> None:
        self._samples: list[dict[Key, Array | _Spilled]] = [{} for _ in range(samples)]
        self._folder = folder
        self._limit = limit
        self._held = 0
        self._file: IO[bytes] | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}  # by size

    def append(self, arrays: Mapping[Key, Array]) -> None:
        """One sample more.

        Raises:
            ResourceError: the disk is full.
        """
        self._samples.append({})
        for value, array in arrays.items():
            self.put(len(self._samples) - 1, value, array)

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def spilled_bytes(self) -> int:
        """Size of the file."""
        return self._end

    def sample(self, index: int) -> Mapping[Key, Array]:
        """Everything kept of one sample; what was spilled is read anew."""
        return {
            value: self._read(kept) if isinstance(kept, _Spilled) else kept
            for value, kept in self._samples[index].items()
        }

    def array(self, index: int, value: Key) -> Array:
        """One value of one sample."""
        kept = self._samples[index][value]
        return self._read(kept) if isinstance(kept, _Spilled) else kept

    def put(self, index: int, value: Key, array: Array) -> None:
        """Keep an array in place of what was kept of the value; past the limit it goes to the file.

        Raises:
            ResourceError: the disk is full.
        """
        self._release(self._samples[index].pop(value, None))
        if self._held + array.nbytes > self._limit and array.nbytes > 0:
            self._samples[index][value] = self._write(array)
        else:
            self._held += array.nbytes
            self._samples[index][value] = array

    def drop(self, value: Key) -> None:
        """Forget a value of every sample."""
        for sample in self._samples:
            self._release(sample.pop(value, None))

    def _release(self, kept: "Array | _Spilled | None") -> None:
        if isinstance(kept, _Spilled):
            self._free.setdefault(kept.nbytes, []).append(kept.start)
        elif kept is not None:
            self._held -= kept.nbytes

    def _write(self, array: Array) -> "_Spilled":
        free = self._free.get(array.nbytes)
        start = free.pop() if free else self._end
        self._end = max(self._end, start + array.nbytes)
        with writing(self._folder):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  lives as long as the borders
            self._file.seek(start)
            # Raw bytes: the .npy format knows no bfloat16.
            self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._file.flush()
        return _Spilled(start, array.dtype, array.shape)

    def _read(self, spilled: "_Spilled") -> Array:
        assert self._file is not None
        array = np.empty(spilled.shape, spilled.dtype)
        self._file.seek(spilled.start)
        self._file.readinto(array.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]  # a BufferedRandom
        return array


@dataclass(frozen=True, slots=True)
class _Spilled:
    """Where an array lies in the file."""

    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class KeptFeeds(Sequence[Feed]):
    """Feeds that can be gone through again and again, of which ``limit`` bytes stay in memory.

    Args:
        folder: for those past it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._kept = Borders[str](0, folder, limit)

    def append(self, feed: Feed) -> None:
        """One more.

        Raises:
            ResourceError: the disk is full.
        """
        self._kept.append(feed)

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Feed]: ...
    def __getitem__(self, index: int | slice) -> Feed | Sequence[Feed]:
        if isinstance(index, slice):
            return [self._kept.sample(each) for each in range(*index.indices(len(self)))]
        return self._kept.sample(range(len(self))[index])
