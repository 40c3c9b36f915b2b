"""English prose that ships with Python: reference topics, the standard library's docstrings and comments.

Text for the embedded tiny_lm, at hand on every machine. Topics whose name hashes to a multiple of
``HOLD_OUT`` are held out for evaluation. Topics quote each other at length, so every paragraph of a held-out
topic is also removed from the rest. The text differs a little between Python versions; the split by name does
not.
"""

import ast
import hashlib
import importlib
import inspect
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

HOLD_OUT = 8
MIN_PARAGRAPH = 80  # characters; shorter ones are headings, signatures and grammar
MIN_COMMENT_LINES = 2
SKIPPED_FOLDERS = {"site-packages", "lib2to3", "pydoc_data", "encodings", "__pycache__"}


def evaluation_text() -> str:
    """Paragraphs of the held-out topics, in order of topic."""
    return "\n\n".join(_distinct(_topic_paragraphs(held_out=True), set()))


def topic_text() -> str:
    """Paragraphs of the other topics: the calibration text and a part of the training text."""
    return "\n\n".join(_distinct(_topic_paragraphs(held_out=False), _held_out_paragraphs()))


def training_text() -> str:
    """The standard library's docstrings and comments, then ``topic_text``."""
    library = _distinct(_library_paragraphs(), _held_out_paragraphs())
    return "\n\n".join(library) + "\n\n" + topic_text()


def is_held_out(topic: str) -> bool:
    """Whether a topic is for evaluation; stable across processes and versions."""
    return hashlib.sha256(topic.encode()).digest()[0] % HOLD_OUT == 0


def _held_out_paragraphs() -> set[str]:
    return {_collapsed(paragraph) for paragraph in _topic_paragraphs(held_out=True)}


def _topic_paragraphs(held_out: bool) -> Iterator[str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        if is_held_out(name) is held_out:
            yield from topics[name].split("\n\n")


def _library_paragraphs() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if SKIPPED_FOLDERS.intersection(path.relative_to(library).parts):
            continue
        try:
            source = path.read_text("utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # the test suite holds files that are broken on purpose
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node, clean=False)
                if text:
                    yield from inspect.cleandoc(text).split("\n\n")
        yield from _comment_paragraphs(source)


def _comment_paragraphs(source: str) -> Iterator[str]:
    """Blocks of whole-line comments, without their number signs."""
    block: list[str] = []
    for line in source.splitlines():
        stripped = line.strip()
        if stripped.startswith("# "):
            block.append(stripped[2:])
            continue
        if len(block) >= MIN_COMMENT_LINES:
            yield "\n".join(block)
        block = []


def _distinct(paragraphs: Iterable[str], excluded: set[str]) -> Iterator[str]:
    seen = set(excluded)
    for paragraph in paragraphs:
        collapsed = _collapsed(paragraph)
        if len(collapsed) >= MIN_PARAGRAPH and collapsed not in seen:
            seen.add(collapsed)
            yield paragraph.strip("\n")


def _collapsed(paragraph: str) -> str:
    return " ".join(paragraph.split())
