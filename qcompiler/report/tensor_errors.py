"""What quantization changed at every aligned value of two models, over data that both run.

Values are read a chunk at a time: each chunk is a session of each model that runs every feed, and of what comes out sums alone are kept.
So memory holds the values of one chunk and one feed, and the time is that of as many passes over the data as there are chunks.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from qcompiler.errors import InputError
from qcompiler.quant.tensor_difference import TensorDifference
from qcompiler.report.alignment import AlignedValue, Alignment, upstream
from qcompiler.report.moved_factors import MovedFactors
from qcompiler.report.tapped_model import Tap, TappedModel

Array = npt.NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
Progress = Callable[[str, int, int], None]
CHUNK_BYTES = 256 << 20  # of the values of both models that are read at a time
RESCALED, TURNED = "rescaled", "rotated"
_TURNED_COSINE = 0.5  # at most: a rotation that spreads outliers leaves about 0
_ALIKE_LENGTHS = 0.1  # relative; a rotation keeps lengths but for the noise of rounding
# What is computed from a value cannot be so much better than the value, unless it means the same;
_HEALED_DB = 6.0
# nor, through its own rounding, this much worse than a good one.
_GOOD_DB, _LOST_DB = 40.0, 25.0
_ENOUGH_DB = 25.0  # readers may be better than any fit, as one that saturates is
_EXPLAINED_DB = (
    3.0  # factors that fit numbers which have nothing to do with each other leave all of the signal: 0 dB
)


@dataclass(frozen=True)
class TensorError:
    """One value of both models over all data.

    Attributes:
        name: in the reference; other: of the value that was read in the other model.
        op: operator that makes it in the reference; node: its name there.
        layers: products that show first in it.
        block: of the model, such as "layers.3"; empty where it is in none.
        sqnr_db: signal to noise; infinity when equal, -infinity when one side alone holds NaN or infinity.
        cosine: of the angle between all of both.
        max_error, mean_error: of other minus reference.
        least, greatest: of the reference.
        unlike: numbers of which one side alone is NaN or infinite.
        relation: empty; "rescaled" where the other's numbers are the reference's times a factor for each channel, which later nodes take
            back (sqnr_db is then what is left after those factors; cosine and errors are as they are); "rotated" where rows were
            turned, and taken back later: what is measured here says nothing.
    """

    name: str
    other: str
    op: str
    node: str
    layers: tuple[str, ...]
    block: str
    sqnr_db: float
    cosine: float
    max_error: float
    mean_error: float
    least: float
    greatest: float
    unlike: int = 0
    relation: str = ""

    @property
    def title(self) -> str:
        """What people know it by."""
        return " + ".join(self.layers) or self.name


@dataclass(frozen=True)
class TensorErrors:
    """A finished comparison.

    Attributes:
        values: in the reference's order.
        outputs: the models' common outputs that hold floats, likewise.
        samples: feeds; chunks: passes over them.
        tap_sqnr_db: of the other model's outputs while values were read, against those without: infinity where reading changed nothing.
        notes: what a reader should know.
    """

    values: list[TensorError]
    outputs: list[TensorError]
    samples: int
    chunks: int
    tap_sqnr_db: float
    notes: list[str] = field(default_factory=list)


def tensor_errors(
    reference: TappedModel,
    other: TappedModel,
    alignment: Alignment,
    values: Sequence[AlignedValue],
    feeds: Feeds,
    progress: Progress = lambda what, done, total: None,
    chunk_bytes: int = CHUNK_BYTES,
) -> TensorErrors:
    """Errors of ``values``, which are of the alignment, and of the common outputs.

    Args:
        feeds: at least one, complete for the reference; what the other lacks is filled in.
    Raises:
        InputError: there is nothing to compare, or a model cannot be run.
        CalibrationError: a feed does not fit.
    """
    wanted = {value.name: value for value in values}
    outputs = _outputs(reference, other, alignment)
    wanted |= {value.name: value for value in outputs}
    if not wanted:
        raise InputError(
            f"{reference.path} and {other.path} have no value of one name in common; is it the model's own reference?"
        )
    chunks = list(chunks_of(list(wanted.values()), other, feeds, chunk_bytes))
    unread = other.plain().run(feeds[0])
    sums: dict[str, TensorDifference] = {}
    unfit: dict[str, str] = {}
    changed = math.inf
    for number, chunk in enumerate(chunks):
        progress("comparing values", number, len(chunks))
        changed = min(changed, _add_chunk(chunk, reference, other, feeds, unread, sums, unfit))
    progress("comparing values", len(chunks), len(chunks))
    found = {name: _error(value, sums[name]) for name, value in wanted.items() if name in sums}
    moved = MovedFactors(reference.model, other.model)
    found = _related(found, sums, upstream(reference.model, found), moved)
    asked = {value.name for value in values}
    return TensorErrors(
        [error for name, error in found.items() if name in asked],
        [found[value.name] for value in outputs if value.name in found],
        len(feeds),
        len(chunks),
        changed,
        [f"{name}: {why}" for name, why in unfit.items()],
    )


def _add_chunk(
    chunk: Sequence[AlignedValue],
    reference: TappedModel,
    other: TappedModel,
    feeds: Feeds,
    unread: Mapping[str, Array],
    sums: dict[str, TensorDifference],
    unfit: dict[str, str],
) -> float:
    """Runs both models with a chunk read, in sessions that are gone on return; SQNR of the other's outputs against ``unread``."""
    theirs = reference.session([value.reference for value in chunk])
    ours = other.session([value.other for value in chunk])
    changed = math.inf
    for index, feed in enumerate(feeds):
        wanted, got = theirs.run(feed), ours.run(feed, outputs=index == 0)
        if index == 0:
            changed = min((_sqnr(array, got[name]) for name, array in unread.items()), default=math.inf)
        for value in chunk:
            # Two values may be read in one place: a rounded one, and the output that it is rounded to.
            _count(value, (wanted.get(value.reference.value), got.get(value.other.value)), sums, unfit)
    return changed


def _outputs(reference: TappedModel, other: TappedModel, alignment: Alignment) -> list[AlignedValue]:
    """Common outputs, in the reference's order."""
    known = {value.name: value for value in alignment.values}
    names = [name for name in reference.outputs if name in known and name in other.outputs]
    return [replace(known[name], other=Tap(name), reference=Tap(name)) for name in names]


def chunks_of(
    values: Sequence[AlignedValue], model: TappedModel, feeds: Feeds, limit: int
) -> Iterator[list[AlignedValue]]:
    """Parts of the values, in order, that take at most ``limit`` bytes each in two models (one value may take more)."""
    largest = max(feeds, key=lambda feed: sum(array.size for array in feed.values()))
    counts = model.element_counts([value.other for value in values], largest)
    chunk: list[AlignedValue] = []
    room = limit
    for value, count in zip(values, counts, strict=True):
        size = 2 * 4 * count
        if chunk and size > room:
            yield chunk
            chunk, room = [], limit
        chunk.append(value)
        room -= size
    yield chunk


def _count(
    value: AlignedValue,
    pair: tuple[Array | None, Array | None],
    sums: dict[str, TensorDifference],
    unfit: dict[str, str],
) -> None:
    """Add a pair of arrays to the sums of its value; numbers that are no floats, and shapes that differ, are not compared."""
    wanted, got = pair
    if wanted is None or got is None or wanted.dtype.kind not in _FLOATS or value.name in unfit:
        return
    if wanted.shape != got.shape:
        unfit[value.name] = f"is {list(wanted.shape)} in the reference and {list(got.shape)} in the other"
        sums.pop(value.name, None)
        return
    sums.setdefault(value.name, TensorDifference()).add(wanted, got)


_FLOATS = "fV"
"""Kinds of dtype; V is what bfloat16 and its like say."""


def _sqnr(reference: Array, array: Array) -> float:
    if reference.dtype.kind not in _FLOATS or reference.shape != array.shape:
        return math.inf
    difference = TensorDifference()
    difference.add(reference, array)
    return difference.sqnr_db


def _error(value: AlignedValue, difference: TensorDifference) -> TensorError:
    return TensorError(
        value.name,
        value.other.value,
        value.op,
        value.node,
        value.layers,
        value.block,
        difference.sqnr_db,
        difference.cosine,
        difference.max_error,
        difference.mean_error,
        difference.least,
        difference.greatest,
        difference.unlike,
    )


def _related(
    found: dict[str, TensorError],
    sums: Mapping[str, TensorDifference],
    before: Mapping[str, frozenset[str]],
    moved: MovedFactors,
) -> dict[str, TensorError]:
    """Marks values that mean the same with other numbers: the weights that read them take their factors back, or, where weights do not
    say, what is computed from them is much better than they are.

    From the end on, since a value's readers may be rescaled themselves.
    """
    after: dict[str, list[str]] = {}
    for name, sources in before.items():
        for source in sources:
            after.setdefault(source, []).append(name)
    marked = dict(found)
    best_behind: dict[str, float] = {}
    for name in reversed(found):
        error, difference = found[name], sums[name]
        # Of many channels it is of those that were read: less than what a fit says, where readers are so good that one is believed.
        taken_back_db = moved.rescaled_sqnr_db(name, difference)
        if taken_back_db is not None:
            marked[name] = replace(error, sqnr_db=taken_back_db, relation=RESCALED)
        behind = [
            best_behind[reader] if marked[reader].relation == TURNED else marked[reader].sqnr_db
            for reader in after.get(name, ())
        ]
        best = best_behind[name] = max(behind, default=-math.inf)
        if error.unlike or best < error.sqnr_db + _HEALED_DB:
            continue
        rescaled = difference.rescaled_sqnr_db
        taken_back = best >= min(rescaled, _GOOD_DB) - _LOST_DB
        fits = rescaled >= max(_EXPLAINED_DB, error.sqnr_db + _HEALED_DB, min(best, _ENOUGH_DB) - _HEALED_DB)
        if fits and taken_back:
            marked[name] = replace(error, sqnr_db=max(rescaled, marked[name].sqnr_db), relation=RESCALED)
        elif (
            taken_back_db is None
            and error.cosine < _TURNED_COSINE
            and difference.length_error < _ALIKE_LENGTHS
        ):
            marked[name] = replace(error, relation=TURNED)
    return marked
