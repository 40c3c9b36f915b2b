"""What recipes cost a sentence encoder: cosines of all-MiniLM-L6-v2's embeddings to the float model's.

python -m benchmarks.embeddings                 all rows; goes on where it stopped
python -m benchmarks.embeddings --rows w4-best  some of them
python -m benchmarks.embeddings --again         measured anew
python -m benchmarks.embeddings --markdown      and the table for the docs

Data: sentences of the Debian Handbook (--text takes another text), 256 to calibrate and 512 others to evaluate; each is fed
alone, so no padding counts as data. An embedding is the mean of the token embeddings under the attention mask, brought to length 1.
The peer quantizes the linears in the same bits, group and symmetry and leaves the embedding float; the ratio is our mean of
1 - cosine over the peer's. Both compute with float32 activations (accuracy_level 0).
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from benchmarks.measure import child
from benchmarks.measure.evaluation import model_bytes
from benchmarks.measure.results import OUT, Results, markdown
from benchmarks.quality import G32, G32_8, G64, Peer, Row, at_level
from models import handbook, language, minilm

JSON = OUT / "embeddings.json"
CALIBRATION, EVALUATION = 256, 512  # sentences
ROWS = (
    Row("w4-best", "w4a16-best: int4 g64 asym, embedding int8", "w4a16-best", G64),
    Row("w4-best-float-ends", "w4a16-best, embedding float", "w4a16-best", G64, ("embedding=float",)),
    Row("w4-awq", "w4a16-awq: int4 g64 asym, embedding int8", "w4a16-awq", G64),
    Row("w4-rtn", "w4a16-rtn: int4 g32 sym, embedding int8", "w4a16-rtn", G32, (), data=False),
    Row("w8-rtn", "w8a16-rtn: int8 g32 sym, embedding int8", "w8a16-rtn", G32_8, (), data=False),
)

Embeddings = npt.NDArray[np.float32]


def pooled(tokens: npt.NDArray[np.floating[Any]], mask: npt.NDArray[np.int64]) -> Embeddings:
    """Mean of the token embeddings [S, T, C] where the mask [S, T] is 1, of length 1: float32 [S, C]."""
    weights = mask[:, :, None].astype(np.float32)
    means = (tokens * weights).sum(axis=1) / weights.sum(axis=1)
    normalized: Embeddings = means / np.linalg.norm(means, axis=1, keepdims=True)
    return normalized


def embed(model: Path, feeds: Sequence[minilm.Feeds]) -> Embeddings:
    """Sentence embeddings float32 [sentences, C], from the model's token embeddings."""
    session = language.session(model)
    return np.concatenate(
        [pooled(session.run(["token_embeddings"], feed)[0], feed["attention_mask"]) for feed in feeds]
    )


def measure(rows: Iterable[Row], results: Results, text: Path | None, again: bool) -> None:
    """Every row that is not finished, with its peer."""
    entries: dict[str, Row | Peer] = {}
    for row in rows:
        entries |= {row.key: row}
        if row.peer is not None:
            entries |= {row.peer.key: row.peer}
    entries = {key: entry for key, entry in entries.items() if again or key not in results}
    if not entries:
        return
    built = minilm.build()
    tokenizer = Tokenizer.from_file(str(built.tokenizer))
    texts = (handbook.calibration_text(text), CALIBRATION), (handbook.evaluation_text(text), EVALUATION)
    calibration, evaluation = (
        [minilm.tokenize(tokenizer, [sentence]) for sentence in minilm.sentences(whole, count)]
        for whole, count in texts
    )
    data = OUT / "work" / "sentences.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({name: array.tolist() for name, array in feed.items()}) for feed in calibration]
    data.write_text("\n".join(lines) + "\n", "utf-8")
    reference = embed(built.path, evaluation)
    results.put("float", {"bytes": model_bytes(built.path)})
    for key, entry in entries.items():
        work = OUT / "work" / f"embeddings-{key}"
        shutil.rmtree(work, ignore_errors=True)
        print(entry.what, file=sys.stderr, flush=True)
        made = _make(entry, built.path, work, data)
        model = work / "model.onnx"
        cosines = (embed(at_level(model, 0), evaluation) * reference).sum(axis=1, dtype=np.float64)
        found = {"cosine": float(cosines.mean()), "worst": float(cosines.min()), "bytes": model_bytes(model)}
        results.put(key, made | found | {"what": entry.what})
        shutil.rmtree(work)


def _make(entry: Row | Peer, model: Path, work: Path, data: Path) -> dict[str, Any]:
    arguments: dict[str, Any] = {"model": str(model), "output": str(work)}
    if isinstance(entry, Peer):
        return child.run("ort", arguments | asdict(entry))
    samples = [f"calib.samples={CALIBRATION}"] if entry.data else []
    arguments |= {"recipe": entry.recipe, "settings": [*entry.settings, *samples]}
    return child.run("compile", arguments | ({"calibration": str(data)} if entry.data else {}))


HEADS = ["", "mean cosine", "worst", "1 - cosine / ORT RTN", "MB", "seconds", "peak GB"]


def table(results: Results, keys: Iterable[str] | None = None) -> str:
    """Markdown of the finished rows; ``keys`` of ROWS, all where None."""
    wanted = [row for row in ROWS if keys is None or row.key in set(keys)]
    entries: dict[str, tuple[str, Peer | None]] = {row.key: (row.what, row.peer) for row in wanted}
    entries |= {row.peer.key: (row.peer.what, row.peer) for row in wanted if row.peer is not None}
    lines = []
    if "float" in results:
        lines.append(["float", "1", "1", "", f"{results.rows['float']['bytes'] / 1e6:.1f}", "", ""])
    for key, (what, peer) in entries.items():
        if key not in results or (peer is not None and peer.key not in results):
            continue
        row = results.rows[key]
        beside = None if peer is None else results.rows[peer.key]
        ratio = "" if beside is None else f"{(1 - row['cosine']) / (1 - beside['cosine']):.3f}"
        lines.append(
            [what, f"{row['cosine']:.5f}", f"{row['worst']:.5f}", ratio, f"{row['bytes'] / 1e6:.1f}",
             f"{row['wall_seconds']:.0f}", f"{row['peak_anonymous_bytes'] / 1e9:.2f}"]
        )  # fmt: skip
    return markdown(HEADS, lines)


def main() -> None:
    """Command line."""
    every = [row.key for row in ROWS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=every, default=every)
    parser.add_argument("--text", type=Path, help="in place of the Debian Handbook")
    parser.add_argument("--json", type=Path, default=JSON, help="where finished rows are kept")
    parser.add_argument("--again", action="store_true", help="measure rows that are finished too")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    results = Results(given.json)
    measure([row for row in ROWS if row.key in given.rows], results, given.text, given.again)
    if given.markdown:
        print(table(results, given.rows))
        return
    for key, row in results.rows.items():
        if "cosine" in row:
            print(
                f"{key:24} cosine {row['cosine']:.5f}  worst {row['worst']:.5f}  {row['bytes'] / 1e6:.1f} MB"
            )


if __name__ == "__main__":
    main()
