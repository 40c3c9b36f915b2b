"""tiny_lm: a byte-level Llama-style decoder of 1.6 M parameters whose weights are in this folder.

    python -m models.tiny_lm [--graph prefill|kv] [--dtype float32|float16|bfloat16]
                             [--copy-to DIR] [--measure] [--prompt TEXT]

The default model of demos and tests: no network, seconds to build. Token ids are byte values. Trained by
``models.tiny_lm_train`` on text that ships with Python; calibrated on language reference topics, evaluated on
topics held out (see python_text). Sizes: 4 layers, hidden 192, inner 512, 6 heads of 32, 2 key-value heads,
tied head.
"""

from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from models import cache, language, python_text
from models.built_model import BuiltModel, Dtype, Graph, ModelFiles, exit_from, parser, print_built
from models.llama import LlamaConfig, export, load

CONFIG = LlamaConfig(
    vocab=256, hidden=192, inner=512, layers=4, heads=6, kv_heads=2, rope_base=10000.0, norm_eps=1e-5
)
WEIGHTS = Path(__file__).with_name("tiny_lm.safetensors")
CALIBRATION_WINDOWS = 16
EVALUATION_WINDOWS = 32
LENGTH = 512  # as trained


def build(graph: Graph = Graph.PREFILL, dtype: Dtype = Dtype.FLOAT32) -> BuiltModel:
    """The exported model and its tokenizer, from the cache; exporting takes about 10 s on 2 cores.

    Raises:
        UnavailableError: torch or safetensors is not installed.
    """
    here = Path(__file__)
    sources = [here, WEIGHTS, here.with_name("llama.py"), here.with_name("torch_export.py")]
    facts = {"graph": graph.value, "dtype": dtype.value}
    facts |= cache.versions("torch", "onnxscript", "safetensors", "tokenizers")

    def fill(folder: Path) -> None:
        from safetensors.torch import load_file

        export(load(CONFIG, load_file(WEIGHTS), dtype), graph, folder / "model.onnx")
        write_tokenizer(folder / "tokenizer.json")

    folder = cache.entry(f"tiny_lm-{graph.value}-{dtype.value}", facts, sources, fill)
    return BuiltModel(folder / "model.onnx", folder / "tokenizer.json")


def calibration_data() -> Path:
    """Plain text for ``--calib``: a part of what the model was trained on."""
    return _texts() / "calibration.txt"


def evaluation_data() -> Path:
    """Plain text for ``--text``: topics that the model was not trained on."""
    return _texts() / "evaluation.txt"


def calibration_windows(tokenizer: Path) -> language.Ids:
    """int64 [16, 512]."""
    text = calibration_data().read_text("utf-8")
    return language.windows(tokenizer, text, CALIBRATION_WINDOWS, LENGTH)


def evaluation_windows(tokenizer: Path) -> language.Ids:
    """int64 [32, 512]."""
    text = evaluation_data().read_text("utf-8")
    return language.windows(tokenizer, text, EVALUATION_WINDOWS, LENGTH)


def measure(model: Path, tokenizer: Path) -> dict[str, float]:
    """Perplexity per byte on the evaluation windows; a uniform guess is 256."""
    return {"perplexity": language.perplexity(language.session(model), evaluation_windows(tokenizer))}


def generate(
    session: onnxruntime.InferenceSession, prompt: str, count: int, seed: int = 0, temperature: float = 0.0
) -> str:
    """``count`` bytes after the prompt, as text: the most likely at temperature 0, else sampled."""
    ids = np.frombuffer(prompt.encode(), dtype=np.uint8).astype(np.int64)
    new = language.generate(session, ids, count, temperature, seed)
    return new.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


def write_tokenizer(path: Path) -> None:
    """tokenizer.json whose ids are the bytes of UTF-8: a byte-level BPE without merges."""
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def _byte_characters() -> list[str]:
    """What stands for each byte in byte-level BPE (GPT-2): itself if printable, else from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _texts() -> Path:
    calibration, evaluation = python_text.topic_text(), python_text.evaluation_text()
    facts = {"calibration": calibration, "evaluation": evaluation}

    def fill(folder: Path) -> None:
        (folder / "calibration.txt").write_text(calibration, "utf-8", newline="\n")
        (folder / "evaluation.txt").write_text(evaluation, "utf-8", newline="\n")

    return cache.entry("tiny_lm-text", facts, [], fill)


def main() -> None:
    """Command line."""
    options = parser(__doc__)
    options.add_argument("--graph", choices=[graph.value for graph in Graph], default=Graph.PREFILL.value)
    options.add_argument("--dtype", choices=[dtype.value for dtype in Dtype], default=Dtype.FLOAT32.value)
    options.add_argument("--prompt", help="also print this text and what the model makes of it")
    given = options.parse_args()
    built = build(Graph(given.graph), Dtype(given.dtype))
    tokenizer = built.path.with_name("tokenizer.json")
    measured = measure(built.path, tokenizer) if given.measure else None
    files = ModelFiles(built, calibration_data(), evaluation_data())
    print_built(files, measured, given.copy_to)
    if given.prompt:
        print(given.prompt + generate(language.session(built.path), given.prompt, count=200))


if __name__ == "__main__":
    exit_from(main)
