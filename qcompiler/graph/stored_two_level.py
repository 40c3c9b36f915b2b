"""A weight with two-level scales in the spill file: codes in the order of com.microsoft::MatMulNBits, and the levels of its scales."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant import packing
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.two_level import Levels, TwoLevelTensor

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class StoredLevels:
    """``Levels`` whose parts are in the spill file, S super-blocks of s groups.

    Attributes:
        low: uint4 [S, s], the lower four bits of each code.
        high: uint8 [S, s / 4], the upper two of four codes, the first in the lowest bits; None for codes of four bits.
        step: float16 [S, 1].
    """

    low: MappedTensor
    high: MappedTensor | None
    step: MappedTensor

    @property
    def parts(self) -> list[MappedTensor]:
        """All of them."""
        return [part for part in (self.low, self.high, self.step) if part is not None]


@dataclass(frozen=True, slots=True, eq=False)
class StoredTwoLevel:
    """A ``TwoLevelTensor`` [N, K] whose parts are in the spill file.

    Attributes:
        scheme: of the stored codes; three bits are stored as four.
        asked: the scheme that was asked for.
        packed: uint8 [N, G, g bits / 8], the B input of MatMulNBits.
        minima: None in a symmetric scheme.
    """

    scheme: QuantScheme
    asked: QuantScheme
    n: int
    k: int
    packed: MappedTensor
    scales: StoredLevels
    minima: StoredLevels | None

    @property
    def label(self) -> str:
        """Of the scheme that was asked for."""
        return self.asked.label

    def tensor(self) -> TwoLevelTensor:
        """The weight in memory as it is stored; its codes take N * K bytes."""
        codes = packing.unpack_matmul_nbits(self.packed.numpy(), self.k, self.scheme.bits)
        shape = self.scheme.scale_shape(self.n, self.k)
        if self.asked.bits == self.scheme.bits:
            scheme = self.asked
        else:  # the values are those of the codes that were asked for
            scheme = self.asked
            codes = codes - np.uint8(self.scheme.midpoint - scheme.midpoint if scheme.symmetric else 0)
        bias = 1 << (scheme.level_bits - 1) if scheme.symmetric else 0
        scales = join_levels(self.scales, shape, bias)
        minima = None if self.minima is None else join_levels(self.minima, shape, 0)
        return TwoLevelTensor(scheme, codes, scales, minima)

    def record(self) -> dict[str, Any]:
        """What ``restore_two_level`` needs to find it again in the same spill file; plain JSON."""
        return {
            "scheme": {**asdict(self.asked), "granularity": self.asked.granularity.value},
            "shape": [self.n, self.k],
            "packed": self.packed.offset,
            "scales": [part.offset for part in self.scales.parts],
            "minima": None if self.minima is None else [part.offset for part in self.minima.parts],
        }


def store_two_level(store: WeightStore, quantized: TwoLevelTensor, name: str) -> StoredTwoLevel:
    """Appends a weight to the spill file.

    Raises:
        ResourceError: the disk is full.
    """
    n, k = quantized.shape
    asked = quantized.scheme
    scheme = stored_scheme(asked)
    shift = scheme.midpoint - asked.midpoint if asked.symmetric else 0
    flat = packing.pack_matmul_nbits(quantized.codes + np.uint8(shift), None, scheme)
    packed = store.add(flat, ir.DataType.UINT8, flat.shape, f"{name}.codes")
    scales = _store_levels(store, quantized.scales, asked, f"{name}.scale")
    minima = (
        None if quantized.minima is None else _store_levels(store, quantized.minima, asked, f"{name}.minimum")
    )
    return StoredTwoLevel(scheme, asked, n, k, packed, scales, minima)


def restore_two_level(store: WeightStore, record: dict[str, Any], name: str) -> StoredTwoLevel:
    """The weight that ``StoredTwoLevel.record`` described, in the spill file of the same bytes.

    Raises:
        ValueError: the file ends before it.
    """
    fields = record["scheme"]
    asked = QuantScheme(**{**fields, "granularity": Granularity(fields["granularity"])})
    scheme = stored_scheme(asked)
    n, k = record["shape"]
    shape = (n, scheme.groups(k), scheme.group_width(k) * scheme.bits // 8)
    packed = store.at(record["packed"], ir.DataType.UINT8, shape, f"{name}.codes")

    def levels(offsets: list[int], key: str) -> StoredLevels:
        places = _places(asked, n, k, f"{name}.{key}")
        found = [store.at(offset, *place) for offset, place in zip(offsets, places, strict=True)]
        return StoredLevels(found[0], found[1] if len(found) == 3 else None, found[-1])

    minima = None if record["minima"] is None else levels(record["minima"], "minimum")
    return StoredTwoLevel(scheme, asked, n, k, packed, levels(record["scales"], "scale"), minima)


def stored_scheme(asked: QuantScheme) -> QuantScheme:
    """The scheme of the codes in the file; it keeps the steps and codes of the scales."""
    return QuantScheme(
        asked.storage_bits,
        asked.symmetric,
        asked.granularity,
        asked.group_size,
        asked.scale_dtype,
        two_level=True,
    )


def join_levels(stored: StoredLevels, shape: tuple[int, int], bias: int) -> Levels:
    """The numbers [N, G] in memory."""
    codes = stored.low.numpy().astype(np.uint8)
    if stored.high is not None:
        codes = codes | (packing.unpack_flat(stored.high.numpy(), codes.shape, 2) << np.uint8(4))
    count = shape[0] * shape[1]
    step = stored.step.numpy().astype(np.float32).reshape(-1)
    return Levels(codes.reshape(-1)[:count].reshape(shape), step, bias)


def _store_levels(store: WeightStore, levels: Levels, scheme: QuantScheme, name: str) -> StoredLevels:
    width = scheme.super_groups
    filled = np.zeros(levels.step.size * width, np.uint8)
    filled[: levels.codes.size] = levels.codes.reshape(-1)
    places = _places(scheme, *_rows_and_columns(levels, scheme), name)
    data: list[npt.NDArray[Any]] = [packing.pack_flat(filled & np.uint8(15), 4)]
    if scheme.level_bits == 6:
        data.append(packing.pack_flat(filled >> np.uint8(4), 2))
    data.append(levels.step.astype(np.float16))
    found = [store.add(part, *place) for part, place in zip(data, places, strict=True)]
    return StoredLevels(found[0], found[1] if len(found) == 3 else None, found[-1])


def _rows_and_columns(levels: Levels, scheme: QuantScheme) -> tuple[int, int]:
    n, groups = levels.codes.shape
    return n, groups * scheme.group_width(0)


def _places(scheme: QuantScheme, n: int, k: int, name: str) -> list[tuple[ir.DataType, tuple[int, int], str]]:
    """Type, shape and name of each part."""
    count, width = scheme.supers(n, k), scheme.super_groups
    places = [(ir.DataType.UINT4, (count, width), f"{name}.low")]
    if scheme.level_bits == 6:
        places.append((ir.DataType.UINT8, (count, width // 4), f"{name}.high"))
    return [*places, (ir.DataType.FLOAT16, (count, 1), f"{name}.step")]
