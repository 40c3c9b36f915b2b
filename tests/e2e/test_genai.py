"""onnxruntime-genai loads our library by the custom_ops_library of its configuration, and decodes with our kernels."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models import language, tiny_lm
from models.built_model import Graph
from models.cache import UnavailableError
from qcompiler.api import CompiledModel
from qcompiler.api import compile as compile_model
from qcompiler.runtime import create_session, library_path

pytestmark = pytest.mark.slow

GENAI = "onnxruntime-genai==0.18.0"  # for the onnxruntime of constraints.txt
CHILD = Path(__file__).with_name("generate_with_genai.py")
PROMPT, COUNT = "The return value is ", 40

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def genai(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a script in this Python with onnxruntime-genai beside it."""
    folder = tmp_path_factory.mktemp("genai")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*pip, "--only-binary=:all:", "--target", folder, GENAI], capture_output=True, text=True
    )
    if done.returncode != 0:
        said = done.stderr.strip() or "no message"
        pytest.skip(f"pip cannot install {GENAI} here: {said.splitlines()[-1]}")
    environment = {**os.environ, "PYTHONPATH": str(folder)}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)

    return run


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledModel:
    """A decoder with a cache that no ONNX Runtime can run without our library."""
    try:
        built = tiny_lm.build(Graph.KV)
    except UnavailableError as error:
        pytest.skip(str(error))
    output = tmp_path_factory.mktemp("compiled") / "out"
    return compile_model(built.path, "w4a16-rtn", target="qcompiler", function_body=False, output=output)


def configure(folder: Path, **session_options: str) -> None:
    """Writes genai_config.json for tiny_lm with a cache."""
    shape = tiny_lm.CONFIG
    past = {f"past_{kind}_names": f"past_key_values.%d.{kind}" for kind in ("key", "value")}
    present = {f"present_{kind}_names": f"present.%d.{kind}" for kind in ("key", "value")}
    names = ("input_ids", "attention_mask", "position_ids")
    decoder = {
        "session_options": session_options,
        "filename": "model.onnx",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_size": shape.hidden // shape.heads,
        "inputs": {**{name: name for name in names}, **past},
        "outputs": {"logits": "logits", **present},
    }
    model = {"type": "llama", "vocab_size": shape.vocab, "context_length": tiny_lm.LENGTH, "decoder": decoder}
    model |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}  # a byte that no text has
    config = {"model": model, "search": {"max_length": tiny_lm.LENGTH, "past_present_share_buffer": False}}
    (folder / "genai_config.json").write_text(json.dumps(config))


def test_it_decodes_with_our_library(genai: Run, compiled: CompiledModel) -> None:
    configure(compiled.path.parent, custom_ops_library=str(library_path()))
    done = genai(CHILD, compiled.path.parent, PROMPT, str(COUNT))
    assert done.returncode == 0, done.stderr
    prompt = np.frombuffer(PROMPT.encode(), np.uint8).astype(np.int64)
    expected = language.generate(create_session(compiled.path), prompt, COUNT, temperature=0, seed=0)
    assert json.loads(done.stdout) == expected.tolist()


def test_without_our_library_it_says_what_is_missing(genai: Run, compiled: CompiledModel) -> None:
    configure(compiled.path.parent)
    done = genai(CHILD, compiled.path.parent, PROMPT, "1")
    assert done.returncode == 1
    assert "ai.qcompiler:" in done.stderr and "is not a registered function" in done.stderr
