"""Border activations on the disk: what a run that goes on needs from the segments before.

Each checkpoint adds a file with the values that its segment made; a value that several segments carry is written once. A file goes
when no value in it is needed any more.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.checkpoints import damaged
from qcompiler.graph.weight_store import WeightStore

Array = npt.NDArray[Any]


class SavedBorders:
    """The files ``borders-N.bin`` in a work folder; of another stream than the quantized one, with its name in front.

    A *table* says where the values are, in plain values for JSON:
    {"files": {file: [bytes, checksum]}, "values": {value: [file, [[offset, dtype, shape] of each sample]]}}.
    """

    def __init__(self, folder: Path, stream: str = "") -> None:
        self._folder = folder
        self._stem = f"{stream}-borders" if stream else "borders"
        self._table: dict[str, dict[str, Any]] = {"files": {}, "values": {}}

    def save(self, number: int, borders: Mapping[str, Iterable[Array]]) -> dict[str, dict[str, Any]]:
        """Writes the values that are not in a file yet; returns the table of all of ``borders``.

        The files of earlier tables stay until ``drop_old``.

        Args:
            number: of this table; each has its own.
            borders: value -> its array for each sample; read where they are to be written.
        Raises:
            ResourceError: the disk is full.
        """
        values = {name: place for name, place in self._table["values"].items() if name in borders}
        files = {name: self._table["files"][name] for name in sorted({place[0] for place in values.values()})}
        fresh = [name for name in borders if name not in values]
        if fresh:
            with WeightStore(self._folder, f"{self._stem}-{number}.bin") as store:
                file = store.path.name
                for name in fresh:
                    values[name] = [file, [_add(store, array, name) for array in borders[name]]]
                store.sync()
                files[file] = [store.nbytes, store.crc32(0, store.nbytes)]
        self._table = {"files": files, "values": values}
        return self._table

    def load(self, table: dict[str, dict[str, Any]]) -> dict[str, list[Array]]:
        """The values of a table, as views of their files.

        Raises:
            ResumeError: a file is not what it was.
        """
        stores = {}
        for file, (nbytes, checksum) in table["files"].items():
            path = self._folder / file
            if not path.is_file() or path.stat().st_size != nbytes:
                raise damaged(path, "is damaged or gone")
            with WeightStore(self._folder, file, fresh=False) as store:
                if store.crc32(0, nbytes) != checksum:
                    raise damaged(path, "is damaged")
            stores[file] = store
        self._table = table
        return {
            name: [
                stores[file].at(offset, ir.DataType[dtype], shape, name).numpy()
                for offset, dtype, shape in places
            ]
            for name, (file, places) in table["values"].items()
        }

    def drop_old(self) -> None:
        """Removes the files that the last table does not name."""
        for path in self._folder.glob(f"{self._stem}-*.bin"):
            if path.name not in self._table["files"]:
                path.unlink()


def _add(store: WeightStore, array: Array, name: str) -> list[Any]:
    dtype = ir.DataType.from_numpy(np.dtype(array.dtype))
    return [store.add(array, dtype, array.shape, name).offset, dtype.name, list(array.shape)]
