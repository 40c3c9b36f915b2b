"""Where the maths of the algorithms runs: torch on a CPU or GPU when it can be imported, NumPy otherwise.

The algorithms are written once, against the array API; this file alone decides whose arrays they get. torch
is imported when the first array is placed, never when a module is.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from qcompiler.errors import ResourceError
from qcompiler.quant.affine import Array

Device = Literal["cpu", "cuda"]

BLOCK = 1 << 22  # weights read at once: 16 MB in float32, whatever the size of the tensor
CHUNK = 1 << 17  # weights worked on at once on a CPU: the temporaries (0.5 MB each) stay in cache
CHUNK_CUDA = 1 << 25  # on a GPU: enough to fill it, 128 MB for each temporary

Item = TypeVar("Item")
Result = TypeVar("Result")


def has_torch() -> bool:
    """Whether torch can be imported; asking does not import it."""
    return importlib.util.find_spec("torch") is not None


def place(array: npt.NDArray[Any], device: Device) -> Array:
    """A float32 array on the device, contiguous: a torch tensor, or NumPy's own where there is no torch.

    Raises:
        ResourceError: "cuda" asked for, and torch is missing or sees no GPU.
    """
    values = np.ascontiguousarray(array, dtype=np.float32)
    if not has_torch():
        if device == "cuda":
            raise ResourceError("device: cuda needs torch; pip install torch, or use device: cpu")
        return values
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device: cuda, but torch sees no CUDA GPU here; use device: cpu")
    if not values.flags.writeable:
        values = values.copy()  # torch warns about memory that it must not write, such as a mapped file
    return torch.from_numpy(values).to(device)


def fetch(array: Array) -> npt.NDArray[Any]:
    """The array in NumPy, of the same type."""
    result: npt.NDArray[Any] = array if isinstance(array, np.ndarray) else array.cpu().numpy()
    return result


def row_blocks(weight: npt.NDArray[Any], size: int = BLOCK, unit: int = 1) -> Iterator[slice]:
    """Slices of rows with at most ``size`` weights each, and a whole number of ``unit`` rows (one at least) but the last."""
    n, k = weight.shape
    step = max(unit, size // max(k, 1) // unit * unit)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def chunk_size(device: Device) -> int:
    """Weights to work on at once."""
    return CHUNK if device == "cpu" else CHUNK_CUDA


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], device: Device) -> list[Result]:
    """The results of the items in order, worked on by as many threads as torch would use for one operation.

    Each thread runs its operations alone. Splitting every small operation over the cores instead costs a
    barrier each: on 2 cores that other processes also use, 0.2 us a weight and step against 0.004 us this way.
    """
    if device != "cpu":
        return [function(item) for item in items]
    if not has_torch():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(function, items))
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # also what new threads start with
    try:
        if threads == 1 or len(items) == 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)
