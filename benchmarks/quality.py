"""What each recipe costs in quality on SmolLM2-135M, beside ONNX Runtime's own quantizer.

python -m benchmarks.quality                    all rows, both forms of the model; goes on where it stopped
python -m benchmarks.quality --rows awq rtn     some of them
python -m benchmarks.quality --again            measured anew
python -m benchmarks.quality --markdown         and the table for the README
python -m benchmarks.quality --rows --peers      peers alone: ONNX Runtime's other quantizers, NNCF
python -m benchmarks.quality --forms tiny       on the embedded model: a minute, to try this script

Data: models.smollm2 (16 x 512 tokens of the Debian Handbook to calibrate, 8 x 512 others to evaluate; --text
takes another text). Every compile is a process of its own. A model is compiled once and evaluated at each
accuracy_level: that is an attribute of its nodes, so it is changed in a copy of the graph beside the same
data file. The peer quantizes the linears in the same bits, group and symmetry, leaves head and embedding
float, and is evaluated at the same level; the ratio is our KL over the peer's.
"""

import argparse
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from benchmarks.measure import child
from benchmarks.measure.environment import NNCF, environment
from benchmarks.measure.evaluation import evaluate, float_perplexity, model_bytes, reference_logits
from benchmarks.measure.results import OUT, Results, markdown
from models import language, smollm2, tiny_lm
from models.built_model import BuiltModel

JSON = OUT / "quality.json"
FORMS = ["off-grid", "original", "tiny"]
LEVELS = (0, 4)
FLOAT_ENDS = ("head=float", "embedding=float")


TOOLS = {
    "rtn": "ORT RTN",
    "hqq": "ORT HQQ",
    "k-quant": "ORT k-quant",
    "nncf": "NNCF AWQ + scale estimation",
    "dynamic": "ORT quantize_dynamic",
}


@dataclass(frozen=True)
class Peer:
    """Another quantizer in one scheme."""

    bits: int
    group: int
    symmetric: bool
    tool: str = "rtn"

    @property
    def key(self) -> str:
        """Name of its rows."""
        maker = self.tool if self.tool == "nncf" else f"ort-{self.tool}"
        return f"{maker}-{self.bits}bit-g{self.group}-{'sym' if self.symmetric else 'asym'}"

    @property
    def what(self) -> str:
        """How tables call it."""
        if self.tool == "dynamic":
            return (
                f"peer: {TOOLS[self.tool]}, int8 by output, activations by tensor, head and embedding float"
            )
        symmetry = "sym" if self.symmetric else "asym"
        return f"peer: {TOOLS[self.tool]}, int{self.bits} g{self.group} {symmetry}, head and embedding float"


@dataclass(frozen=True)
class Row:
    """One of ours; ``what`` is how the table calls it."""

    key: str
    what: str
    recipe: str
    peer: Peer | None
    settings: tuple[str, ...] = ()
    data: bool = True


G64, G32, G32_8 = Peer(4, 64, False), Peer(4, 32, True), Peer(8, 32, True)
DYNAMIC = Peer(8, 0, True, "dynamic")
PEERS = (Peer(4, 64, False, "hqq"), Peer(4, 32, False, "k-quant"), Peer(4, 64, False, "nncf"))  # beside RTN
ROWS = (
    Row("awq", "w4a16-awq: int4 g64 asym, head and embedding int8", "w4a16-awq", G64),
    Row("awq-float-ends", "w4a16-awq, head and embedding float", "w4a16-awq", G64, FLOAT_ENDS),
    Row("awq-no-data", "w4a16-awq without data: sampled from the model", "w4a16-awq", G64, (), data=False),
    Row("awq-g32-sym", "w4a16-awq, g32 sym", "w4a16-awq", G32, ("group_size=32", "symmetric=true")),
    Row("mse-float-ends", "mse alone, g64 asym, head and embedding float", "w4a16-awq", G64,
        ("algorithm=mse", *FLOAT_ENDS)),
    Row("gptq", "w4a16-gptq: int4 g64 asym, head and embedding int8", "w4a16-gptq", G64),
    Row("gptq-rotated", "w4a16-gptq, rotated", "w4a16-gptq", G64, ("transform=rotate",)),
    Row("best", "w4a16-best: int4 g64 asym, head and embedding int8", "w4a16-best", G64),
    Row("best-damping-0.01", "w4a16-best with gptq's damping 0.01", "w4a16-best", G64,
        ("algorithm=[awq, {name: gptq, damping: 0.01}]",)),
    Row("best-g32-sym", "w4a16-best, g32 sym", "w4a16-best", G32, ("group_size=32", "symmetric=true")),
    Row("best-no-data", "w4a16-best without data: sampled from the model", "w4a16-best", G64, (), data=False),
    Row("lorc", "w4a16-best, lorc of rank 32 in float16", "w4a16-best", G64,
        ("algorithm=[awq, gptq, {name: lorc, rank: 32}]", "scale_dtype=float16")),
    Row("spqr", "w4a16-spqr: int4 g64 asym, 1 % outliers, in float16", "w4a16-spqr", G64, ("scale_dtype=float16",)),
    Row("w2-g16", "w4a16-best at int2 g16 asym", "w4a16-best", None, ("bits=2", "group_size=16", "scale_dtype=float16")),
    Row("w2-lorc", "w4a16-best at int2 g64 asym, lorc of rank 18 in float16: as many bits", "w4a16-best", None,
        ("bits=2", "algorithm=[awq, gptq, {name: lorc, rank: 18}]", "scale_dtype=float16")),
    Row("w3-best", "w3a16-best: int3 g64 asym, head and embedding int8", "w3a16-best", None),  # the peer knows no 3 bits
    Row("autoround", "w4a16-autoround: int4 g64 asym, head and embedding int8", "w4a16-autoround", G64),
    Row("w3-autoround", "w3a16-best, then autoround", "w3a16-best", None,
        ("algorithm=[awq, gptq, {name: autoround, steps: 64, reach: 0.3}]",)),
    Row("w2-best", "w2a16-best: int2 g64 asym, head and embedding int8", "w2a16-best", None),
    Row("w2-gptq", "w2a16-best without autoround", "w2a16-best", None, ("algorithm=[awq, gptq]",)),
    Row("w2-rtn", "w2a16-best by round to nearest", "w2a16-best", None, ("algorithm=rtn",)),
    Row("w8-best", "w8a16-best: int8 g32 sym, head and embedding too", "w8a16-best", G32_8),
    Row("mixed", "mixed-auto at 5 bits a weight", "mixed-auto", None),
    Row("mixed-fisher", "mixed-auto at 5 bits a weight, by Fisher scores", "mixed-auto", None, ("mixed.sensitivity=fisher",)),
    Row("hqq-float-ends", "w4a16-hqq: g64, float zero points; head and embedding float", "w4a16-hqq", G64, FLOAT_ENDS, data=False),
    Row("hqq-int-float-ends", "hqq, g64 asym, integer zero points, head and embedding float", "w4a16-hqq", G64,
        ("zero_point=int", "algorithm=hqq", "scale_dtype=auto", *FLOAT_ENDS), data=False),
    Row("kquant", "w4a16-kquant: two-level g32 (Q4_K), head and embedding int8", "w4a16-kquant", G64),
    Row("kquant-float-ends", "w4a16-kquant, head and embedding float", "w4a16-kquant", G64, FLOAT_ENDS),
    Row("awq-kquant-float-ends", "w4a16-kquant behind awq, head and embedding float", "w4a16-kquant", G64,
        ("algorithm=[awq, kquant]", *FLOAT_ENDS)),
    Row("w3-kquant-float-ends", "kquant: two-level int3 g16 sym (Q3_K), head and embedding float", "w4a16-kquant", None,
        ("bits=3", "group_size=16", "symmetric=true", *FLOAT_ENDS)),
    Row("w2-kquant-float-ends", "kquant: two-level int2 g16 (Q2_K), head and embedding float", "w4a16-kquant", None,
        ("bits=2", "group_size=16", *FLOAT_ENDS)),
    Row("nf4", "w4a16-nf4: nf4 g64, head and embedding int8", "w4a16-nf4", None),
    Row("rtn-float-ends", "w4a16-rtn, g64 asym, head and embedding float", "w4a16-rtn", G64,
        ("group_size=64", "symmetric=false", *FLOAT_ENDS), data=False),
    Row("rtn", "w4a16-rtn: int4 g32 sym, head and embedding int8", "w4a16-rtn", G32, (), data=False),
    Row("rtn-g32-sym-float-ends", "w4a16-rtn, head and embedding float", "w4a16-rtn", G32, FLOAT_ENDS, data=False),
    Row("w8", "w8a16-rtn: int8 g32 sym, head and embedding too", "w8a16-rtn", G32_8, (), data=False),
    Row("w8-float-ends", "w8a16-rtn, head and embedding float", "w8a16-rtn", G32_8, FLOAT_ENDS, data=False),
    Row("smoothquant", "w8a8-smoothquant, head and embedding int8", "w8a8-smoothquant", DYNAMIC),
    Row("smoothquant-float-ends", "w8a8-smoothquant, head and embedding float", "w8a8-smoothquant", DYNAMIC, FLOAT_ENDS),
    Row("smoothquant-o2-float-ends", "w8a8-smoothquant, level o2, head and embedding float", "w8a8-smoothquant", DYNAMIC,
        ("level=o2", *FLOAT_ENDS)),
    Row("smoothquant-o3-float-ends", "w8a8-smoothquant, level o3, head and embedding float", "w8a8-smoothquant", DYNAMIC,
        ("level=o3", *FLOAT_ENDS)),
    Row("llmint8", "w8a8-llmint8, head and embedding int8", "w8a8-llmint8", DYNAMIC),
    Row("w8a8-dynamic", "w8a8-dynamic, head and embedding int8", "w8a8-dynamic", DYNAMIC, (), data=False),
    Row("w8a8-zeroquant", "w8a8-zeroquant, head and embedding int8", "w8a8-zeroquant", DYNAMIC, (), data=False),
    Row("w4a8", "w4a8, head and embedding int8", "w4a8", G64),
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A float model with its data."""

    built: BuiltModel
    calibration: Path
    ids: language.Ids


def subject(form: str, text: Path | None) -> Subject:
    """The model of that form, built when it is not in the cache."""
    if form == "tiny":
        built = tiny_lm.build()
        assert built.tokenizer is not None
        return Subject(built, tiny_lm.calibration_data(), tiny_lm.evaluation_windows(built.tokenizer)[:8])
    built = smollm2.build(smollm2.Form(form))
    assert built.tokenizer is not None
    return Subject(built, smollm2.calibration_data(text), smollm2.evaluation_windows(built.tokenizer, text))


def measure(
    form: str,
    rows: Iterable[Row],
    results: Results,
    text: Path | None,
    again: bool,
    peers: Sequence[Peer] = (),
) -> None:
    """Every row of a form that is not finished, with its peer, and other peers."""
    rows = [
        row for row in rows if again or any(_key(form, row.key, level) not in results for level in LEVELS)
    ]
    if not rows and all(_finished(results, form, peer.key) for peer in peers):
        return
    given = subject(form, text)
    digest = hashlib.sha256(given.built.path.parent.name.encode() + given.ids.tobytes()).hexdigest()[:16]
    reference = reference_logits(given.built.path, given.ids, OUT / f"reference-{form}-{digest}.npy")
    if f"{form}/float" not in results or again:
        found = {"perplexity": float_perplexity(given.ids, reference), "bytes": model_bytes(given.built.path)}
        results.put(f"{form}/float", found | {"kl": 0.0, "agreement": 1.0})

    def levels_of(key: str, make: Callable[[Path], dict[str, Any]], what: str) -> None:
        work = OUT / "work" / f"{form}-{key}"
        shutil.rmtree(work, ignore_errors=True)
        print(f"{form}: {what}", file=sys.stderr, flush=True)
        made = make(work)
        model = work / "model.onnx"
        size = model_bytes(model)
        for level in LEVELS:
            quality = evaluate(at_level(model, level), given.ids, reference)
            results.put(
                _key(form, key, level), asdict(quality) | made | {"bytes": size, "what": what, "level": level}
            )
        shutil.rmtree(work)

    for peer in peers:
        if again or not _finished(results, form, peer.key):
            levels_of(peer.key, partial(_run_peer, given, peer), peer.what)
    for row in rows:
        peer = row.peer
        if peer is not None and (again or not _finished(results, form, peer.key)):
            levels_of(peer.key, partial(_run_peer, given, peer), peer.what)
        levels_of(row.key, partial(_compile, given, row), row.what)


def _key(form: str, key: str, level: int) -> str:
    return f"{form}/{key}/level{level}"


def _finished(results: Results, form: str, key: str) -> bool:
    return all(_key(form, key, level) in results for level in LEVELS)


def _compile(given: Subject, row: Row, work: Path) -> dict[str, Any]:
    arguments: dict[str, Any] = {"model": str(given.built.path), "recipe": row.recipe, "output": str(work)}
    arguments["settings"] = list(row.settings)
    if row.data:
        arguments |= {"calibration": str(given.calibration), "tokenizer": str(given.built.tokenizer)}
    return child.run("compile", arguments)


def _run_peer(given: Subject, peer: Peer, work: Path) -> dict[str, Any]:
    arguments = asdict(peer) | {"model": str(given.built.path), "output": str(work)}
    if peer.tool != "nncf":
        return child.run("ort", arguments)
    arguments |= {"calibration": str(given.calibration), "tokenizer": str(given.built.tokenizer)}
    return child.run("nncf", arguments | {"python": str(environment("nncf", NNCF))})


def at_level(model: Path, level: int) -> Path:
    """A copy of the graph at another accuracy_level, beside the same data file."""
    proto = onnx.load(model, load_external_data=False)
    for node in proto.graph.node:
        if node.op_type == "MatMulNBits":
            kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("accuracy_level", level)])
    copy = model.with_name(f"level{level}.onnx")
    onnx.save(proto, copy)
    return copy


HEADS = ["", "PPL", "KL, level 0", "KL, level 4", "agreement", "MB", "seconds", "peak GB", "KL / ORT RTN"]


def table(results: Results, forms: Iterable[str], keys: Iterable[str] | None = None) -> str:
    """Markdown of the finished rows; ``keys`` of ROWS, all where None.

    Perplexity, agreement and ratio are those of accuracy_level 0; seconds are those of the whole process.
    """
    wanted = [row for row in ROWS if keys is None or row.key in set(keys)]
    lines: list[list[str]] = []
    for form in forms:
        base = results.rows.get(f"{form}/float")
        if base is None:
            continue
        size = f"{base['bytes'] / 1e6:.0f}"
        lines.append([f"**{form}**: float", f"{base['perplexity']:.2f}", "0", "0", "1", size, "", "", ""])
        peers = dict.fromkeys(row.peer for row in wanted if row.peer is not None)
        entries: list[tuple[str, str, Peer | None]] = [(row.key, row.what, row.peer) for row in wanted]
        entries += [(peer.key, peer.what, peer) for peer in peers]
        for other in PEERS if keys is None else ():
            base = replace(other, tool="rtn")
            entries.append((other.key, other.what, base if _finished(results, form, base.key) else None))
        for key, what, peer in entries:
            if _finished(results, form, key) and (peer is None or _finished(results, form, peer.key)):
                at0, at4 = (results.rows[_key(form, key, level)] for level in LEVELS)
                beside = None if peer is None else results.rows[_key(form, peer.key, 0)]
                lines.append([what, *_cells(at0, at4, beside)])
    return markdown(HEADS, lines)


def _cells(at0: dict[str, Any], at4: dict[str, Any], peer: dict[str, Any] | None) -> list[str]:
    return [
        f"{at0['perplexity']:.2f}",
        f"{at0['kl']:.4f}",
        f"{at4['kl']:.4f}",
        f"{at0['agreement']:.3f}",
        f"{at0['bytes'] / 1e6:.1f}",
        f"{at0['wall_seconds']:.0f}",
        f"{at0['peak_anonymous_bytes'] / 1e9:.2f}",
        "" if peer is None else f"{at0['kl'] / peer['kl']:.3f}",
    ]


def main() -> None:
    """Command line."""
    every = [row.key for row in ROWS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="*", choices=every, default=every)
    parser.add_argument(
        "--peers",
        action="store_true",
        help="ORT's other quantizers and NNCF too, NNCF in an environment of its own",
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS[:2])
    parser.add_argument("--text", type=Path, help="in place of the Debian Handbook")
    parser.add_argument("--json", type=Path, default=JSON, help="where finished rows are kept")
    parser.add_argument("--again", action="store_true", help="measure rows that are finished too")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    results = Results(given.json)
    for form in given.forms:
        measure(
            form,
            [row for row in ROWS if row.key in given.rows],
            results,
            given.text,
            given.again,
            PEERS if given.peers else (),
        )
    if given.markdown:
        print(table(results, given.forms, given.rows))
        return
    for key, row in results.rows.items():
        if key.split("/")[0] in given.forms:
            quality = f"PPL {row['perplexity']:8.3f}  KL {row['kl']:.4f}  top-1 {row['agreement']:.3f}"
            print(f"{key:40} {quality}  {row['bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
