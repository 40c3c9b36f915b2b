"""Quality of a decoder against a float reference, whose logits are computed once and kept in a file.

Each window is run alone, with nothing in its past. KL and agreement are over all positions, perplexity over
each window's tokens but the first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import language
from qcompiler.quant import metrics


@dataclass(frozen=True)
class Quality:
    """How a model does on the evaluation windows."""

    perplexity: float
    kl: float  # mean KL(reference || model) per token, nats, over the whole vocabulary
    agreement: float  # share of positions whose likeliest token is the reference's


def reference_logits(model: Path, ids: language.Ids, kept: Path) -> npt.NDArray[np.float32]:
    """Mapped float32 [count, length, vocab], from ``kept`` (.npy) or, where it is missing, made into it."""
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_name(kept.name + ".part")
        session = language.session(model)
        array: Any = None
        for index, row in enumerate(ids):
            logits = language.logits(session, row[None])[0]
            if array is None:
                shape = (len(ids), *logits.shape)
                array = np.lib.format.open_memmap(beside, mode="w+", dtype=np.float32, shape=shape)
            array[index] = logits
        array.flush()
        beside.replace(kept)
    found: npt.NDArray[np.float32] = np.load(kept, mmap_mode="r")
    return found


def evaluate(model: Path, ids: language.Ids, reference: npt.NDArray[np.float32]) -> Quality:
    """A model against the reference's logits."""
    session = language.session(model)
    nats, kl, agreement = [], [], []
    for row, expected in zip(ids, reference, strict=True):
        logits = language.logits(session, row[None])[0]
        nats.append(metrics.mean_nats(logits[:-1], row[1:]))
        kl.append(metrics.kl_divergence(expected, logits))
        agreement.append(metrics.top1_agreement(expected, logits))
    return Quality(metrics.perplexity(float(np.mean(nats))), float(np.mean(kl)), float(np.mean(agreement)))


def float_perplexity(ids: language.Ids, reference: npt.NDArray[np.float32]) -> float:
    """Perplexity of the reference itself."""
    nats = [metrics.mean_nats(rows[:-1], row[1:]) for row, rows in zip(ids, reference, strict=True)]
    return metrics.perplexity(float(np.mean(nats)))


def model_bytes(model: Path) -> int:
    """Bytes of ``model.onnx`` with its data file."""
    data = model.with_name(model.name + ".data")
    return model.stat().st_size + (data.stat().st_size if data.exists() else 0)
