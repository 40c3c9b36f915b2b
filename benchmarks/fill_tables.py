"""Writes the measured tables into the README and docs, between their markers.

python -m benchmarks.fill_tables            from what benchmarks left in out/benchmarks/
python -m benchmarks.fill_tables --check    exit status 1 where a table is not what the figures say

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; the names are those of TABLES.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    embeddings,
    int8_language,
    int8_models,
    int8_static,
    looking,
    memory,
    quality,
    ranges,
    session,
)
from benchmarks.measure.results import Results

FILES = (
    "README.md",
    *(f"docs/algorithms/{name}.md" for name in ("autoround", "awq", "gptq", "mse", "rtn")),
    "docs/activations.md",
    "docs/calibration.md",
    "docs/recipes.md",
    "docs/report.md",
)
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def _quality(forms: list[str], keys: list[str] | None = None) -> Callable[[], str]:
    return lambda: quality.table(Results(quality.JSON), forms, keys)


def _session() -> str:
    return session.TEXT.read_text("utf-8").rstrip("\n") if session.TEXT.exists() else ""


TABLES: dict[str, Callable[[], str]] = {
    "session": _session,
    "quality": _quality(["off-grid", "original"]),
    "looking": lambda: looking.table(Results(looking.JSON)),
    "memory": lambda: memory.table(Results(memory.JSON)),
    "forecast": lambda: memory.forecast_table(Results(memory.JSON)),
    "ranges": lambda: ranges.table(Results(ranges.JSON)),
    "embeddings": lambda: embeddings.table(Results(embeddings.JSON)),
    "int8-language": lambda: int8_language.table(Results(int8_language.JSON)),
    "int8-models": lambda: int8_models.table(Results(int8_models.JSON)),
    "int8-static": lambda: int8_static.table(Results(int8_static.JSON)),
    "autoround": _quality(
        ["off-grid", "original"],
        ["best", "autoround", "w3-best", "w3-autoround", "w2-rtn", "w2-gptq", "w2-best"],
    ),
    "awq": _quality(["off-grid"], ["awq", "awq-float-ends", "awq-g32-sym", "mse-float-ends"]),
    "gptq": _quality(
        ["off-grid", "original"], ["gptq", "best", "best-g32-sym", "best-no-data", "w3-best", "w8-best"]
    ),
    "mse": _quality(["off-grid", "original"], ["mse-float-ends", "rtn-float-ends"]),
    "rtn": _quality(
        ["off-grid", "original"], ["rtn-float-ends", "rtn", "rtn-g32-sym-float-ends", "w8", "w8-float-ends"]
    ),
    "activations": _quality(
        ["off-grid"],
        [
            "smoothquant",
            "smoothquant-float-ends",
            "smoothquant-o2-float-ends",
            "smoothquant-o3-float-ends",
            "llmint8",
            "w8a8-dynamic",
            "w8a8-zeroquant",
            "w4a8",
        ],
    ),
    "no-data": _quality(["off-grid", "original"], ["awq", "awq-no-data"]),
}


def filled(text: str) -> str:
    """The text with every table whose figures are there; others stay."""

    def fill(found: re.Match[str]) -> str:
        made = TABLES[found[2]]()
        return f"{found[1]}{made}\n{found[3]}" if made.count("\n") > 1 else found[0]

    return MARKED.sub(fill, text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args()
    stale = []
    for name in FILES:
        file = Path(name)
        text = file.read_text("utf-8")
        if filled(text) != text:
            stale.append(name)
            if not given.check:
                file.write_text(filled(text), "utf-8")
    for name in stale:
        print(f"{name}: {'is not what the figures say' if given.check else 'filled'}")
    sys.exit(1 if given.check and stale else 0)


if __name__ == "__main__":
    main()
