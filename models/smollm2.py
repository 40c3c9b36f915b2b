"""SmolLM2-135M-Instruct (Apache-2.0): a real decoder, for quality figures and end-to-end tests.

    python -m models.smollm2 [--form off-grid|original] [--graph prefill|kv]
                             [--dtype float32|float16|bfloat16] [--text PATH] [--copy-to DIR] [--measure]

Calibration: the first 16 x 512 tokens of the Debian Handbook. Evaluation: 8 x 512 other tokens of it,
perplexity and KL within each window. The off-grid form has the same function as the original, with weights on
no 4-bit grid. Building takes one to two minutes and 1.5 GB on 2 cores; ONNX Runtime runs no bfloat16 decoder
on CPUs.
"""

from enum import Enum
from pathlib import Path

from models import cache, handbook, language
from models.built_model import BuiltModel, Dtype, Graph, ModelFiles, exit_from, parser, print_built

CALIBRATION_WINDOWS = 16
EVALUATION_WINDOWS = 8
LENGTH = 512


class Form(str, Enum):
    """Which weights."""

    ORIGINAL = "original"  # as stored: on a 4-bit grid of blocks of 32
    OFF_GRID = "off-grid"


def build(
    form: Form = Form.OFF_GRID, graph: Graph = Graph.PREFILL, dtype: Dtype = Dtype.FLOAT32
) -> BuiltModel:
    """The exported model and its tokenizer, from the cache.

    Raises:
        UnavailableError: the package with the weights, gguf or torch cannot be had.
    """
    here = Path(__file__)
    sources = [here.with_name(name) for name in ("smollm2_weights.py", "llama.py", "torch_export.py")]
    facts = {"form": form.value, "graph": graph.value, "dtype": dtype.value}
    facts |= cache.versions("torch", "onnxscript", "gguf", "tokenizers")

    def fill(folder: Path) -> None:
        from models import llama, smollm2_weights  # torch and gguf: only needed to build

        reader = smollm2_weights.open_gguf()
        weights = smollm2_weights.read_weights(reader)
        if form is Form.OFF_GRID:
            weights = smollm2_weights.off_grid(weights)
        model = llama.load(smollm2_weights.CONFIG, smollm2_weights.as_torch(weights), dtype)
        llama.export(model, graph, folder / "model.onnx")
        smollm2_weights.write_tokenizer(reader, folder / "tokenizer.json")

    folder = cache.entry(f"smollm2-{form.value}-{graph.value}-{dtype.value}", facts, sources, fill)
    return BuiltModel(folder / "model.onnx", folder / "tokenizer.json")


def calibration_data(text: Path | None = None) -> Path:
    """Plain text for ``--calib``, of the handbook or the given text.

    Raises:
        UnavailableError: the handbook cannot be had.
    """
    return handbook.files(text)[0]


def evaluation_data(text: Path | None = None) -> Path:
    """Plain text for ``--text``. Raises what ``calibration_data`` raises."""
    return handbook.files(text)[1]


def calibration_windows(tokenizer: Path, text: Path | None = None) -> language.Ids:
    """int64 [16, 512]. Raises what ``calibration_data`` raises."""
    return language.windows(tokenizer, handbook.calibration_text(text), CALIBRATION_WINDOWS, LENGTH)


def evaluation_windows(tokenizer: Path, text: Path | None = None) -> language.Ids:
    """int64 [8, 512]. Raises what ``calibration_data`` raises."""
    return language.windows(tokenizer, handbook.evaluation_text(text), EVALUATION_WINDOWS, LENGTH)


def measure(model: Path, tokenizer: Path, text: Path | None = None) -> dict[str, float]:
    """Perplexity on the evaluation windows; 27.66 in float32. Raises what ``calibration_data`` raises."""
    ids = evaluation_windows(tokenizer, text)
    return {"perplexity": language.perplexity(language.session(model), ids)}


def main() -> None:
    """Command line."""
    options = parser(__doc__)
    options.add_argument("--form", choices=[form.value for form in Form], default=Form.OFF_GRID.value)
    options.add_argument("--graph", choices=[graph.value for graph in Graph], default=Graph.PREFILL.value)
    options.add_argument("--dtype", choices=[dtype.value for dtype in Dtype], default=Dtype.FLOAT32.value)
    options.add_argument("--text", type=Path, help="in place of the Debian Handbook")
    given = options.parse_args()
    built = build(Form(given.form), Graph(given.graph), Dtype(given.dtype))
    tokenizer = built.path.with_name("tokenizer.json")
    measured = measure(built.path, tokenizer, given.text) if given.measure else None
    files = ModelFiles(built, calibration_data(given.text), evaluation_data(given.text))
    print_built(files, measured, given.copy_to)


if __name__ == "__main__":
    exit_from(main)
