"""What README and docs say can be typed can be: commands, options, recipes, settings, imports; links too."""

import ast
import dataclasses
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest

from benchmarks import fill_tables
from qcompiler import algorithms, cli
from qcompiler.algorithms import ALGORITHMS
from qcompiler.calibration.data import TOKENS, open_calibration
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics
from qcompiler.recipe import Recipe, builtin_recipes

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
RECIPES = {name for name, _ in builtin_recipes()}


class Block(NamedTuple):
    """A fenced block."""

    page: str
    language: str
    text: str


def fenced() -> Iterator[Block]:
    for page, name in zip(PAGES, NAMES, strict=True):
        for language, text in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            yield Block(name, language, text)


def blocks(language: str) -> list[Block]:
    return [block for block in fenced() if block.language == language]


def commands() -> list[tuple[str, str]]:
    """(page, line): from console blocks, from indented blocks, from inline code."""
    found = []
    for block in blocks("console"):
        for line in block.text.splitlines():
            if line.startswith("$ "):
                found.append((block.page, line[2:]))
    for page, name in zip(PAGES, NAMES, strict=True):
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
        for line in re.findall(r"^    ((?:qcompile |scripts/|python -m )\S.*)$", text, re.M):
            found.append((name, re.split(r"\s{2,}", line)[0]))
        for line in re.findall(r"`((?:qcompile |scripts/|python -m )[^`]+)`", text):
            found.append((name, line))
    return found


QCOMPILE = [(page, line) for page, line in commands() if line.startswith("qcompile ")]


def verb_of(words: list[str]) -> tuple[click.Command, list[str]]:
    if words and words[0] in cli.cli.commands:
        return cli.cli.commands[words[0]], words[1:]
    return cli.cli.commands["compile"], words


def options_of(verb: click.Command) -> dict[str, click.Option]:
    return {
        name: parameter
        for parameter in verb.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
    }


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """own.py of docs/algorithms/your-own.md in the current folder."""
    (block,) = [block for block in blocks("python") if block.page == "docs/algorithms/your-own.md"]
    (tmp_path / "own.py").write_text(block.text, "utf-8")
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own", None)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("statistics", [None, InputStatistics(1, mean_square=np.ones(64, np.float32))])
def test_the_worked_algorithm_works(statistics: InputStatistics | None) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    scheme = QuantScheme(4, False, Granularity.GROUP, 32)
    found = algorithms.find("own:clipped")
    run = algorithms.call(found, "fc", weight, statistics, scheme, found.options(quantile=0.9))
    tensor = algorithms.checked(run, scheme, (4, 64), "fc: clipped")
    # 1 % of the output lost to clipping at most, and half a step of at most 6 / 15 to rounding
    assert np.square(tensor.dequantize() - weight).sum() < 0.05 * np.square(weight).sum()


@pytest.mark.usefixtures("own_module")
def test_every_algorithm_of_the_worked_module_runs_as_it_is_named() -> None:
    text = (ROOT / "docs" / "algorithms" / "your-own.md").read_text("utf-8")
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    scheme = QuantScheme(4, False, Granularity.GROUP, 32)
    named = set(re.findall(r"\bown:\w+", text))
    assert named
    for name in named:
        found = algorithms.find(name)
        run = algorithms.call(found, "fc", weight, None, scheme, found.options())
        algorithms.checked(run, scheme, (4, 64), name)


def test_there_is_something_to_check() -> None:
    assert len(QCOMPILE) >= 10 and blocks("python") and blocks("yaml")


@pytest.mark.parametrize(("page", "line"), QCOMPILE)
def test_command_exists_with_its_options(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    verb, rest = verb_of(words)
    known = options_of(verb)
    for index, word in enumerate(rest):
        if not word.startswith("-"):
            continue
        assert word in (*known, "--help"), f"{page}: {line}: {verb.name} has no {word}"
        if word == "--recipe":
            check_recipe(rest[index + 1], f"{page}: {line}")
    assert not rest or all(
        set(parameter.opts) & set(rest) or not parameter.required for parameter in options_of(verb).values()
    ), f"{page}: {line}: leaves out what {verb.name} requires"


@pytest.mark.parametrize(("page", "line"), [entry for entry in QCOMPILE if "--set" in entry[1]])
@pytest.mark.usefixtures("own_module")
def test_settings_fit_the_recipe(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else "w4a16-awq"
    settings = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    Recipe.load(recipe).with_settings(settings)


def test_formats_of_kquant_are_settings_of_its_recipe() -> None:
    text = (ROOT / "docs" / "algorithms" / "kquant.md").read_text("utf-8")
    rows = re.findall(r"^\| Q\w+ \| (.*?) \|", text, re.M)
    assert len(rows) == 4
    for row in rows:
        settings = [said.replace(": ", "=") for said in re.findall(r"`(\w+: [\w.]+)`", row)]
        Recipe.load("w4a16-kquant").with_settings(settings)


def check_recipe(name: str, where: str) -> None:
    if name in RECIPES or name.isupper() or name.startswith(("FILE", "NAME")):
        return
    assert name.endswith(".yaml"), f"{where}: no recipe {name}"
    assert (ROOT / name.removeprefix("../")).exists(), (
        f"{where}: no file {name}"
    )  # ../ from README's folder session


@pytest.mark.parametrize(("page", "text"), [(b.page, b.text) for b in blocks("yaml")])
def test_yaml_block_is_a_recipe(page: str, text: str) -> None:
    Recipe.from_text(text, where=page, name="block")


@pytest.mark.parametrize(("page", "text"), [(b.page, b.text) for b in blocks("json")])
def test_json_lines_are_calibration_data(page: str, text: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from models.tiny_lm import write_tokenizer

    write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "data.jsonl").write_text(text, "utf-8")
    feeds = list(open_calibration(tmp_path / "data.jsonl", tmp_path / "tokenizer.json", 16, 512))
    assert all(TOKENS in feed for feed in feeds), page


@pytest.mark.parametrize(("page", "text"), [(b.page, b.text) for b in blocks("python")])
def test_python_block_names_what_exists(page: str, text: str) -> None:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), page
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "qcompiler"
        ):
            assert hasattr(importlib.import_module("qcompiler"), node.attr), f"{page}: qcompiler.{node.attr}"


@pytest.mark.parametrize(
    ("page", "line"), [entry for entry in commands() if not entry[1].startswith("qcompile ")]
)
def test_script_or_module_is_there(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0].startswith("scripts/"):
        assert (ROOT / words[0]).is_file(), f"{page}: {line}"
        if words[0] == "scripts/bench" and len(words) > 1 and words[1] != "NAME...":
            assert (ROOT / "benchmarks" / f"{words[1]}.py").is_file(), f"{page}: {line}"
        return
    if "<" not in words[2]:  # python -m models.<name>
        assert (ROOT / Path(*words[2].split("."))).with_suffix(".py").is_file(), f"{page}: {line}"


def test_every_option_of_the_command_line_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for name, verb in cli.cli.commands.items():
        assert name == "compile" or f"qcompile {name}" in text
        missing = [option for option in options_of(verb) if option.startswith("--") and option not in text]
        assert not missing, f"docs/cli.md does not speak of {name} {missing}"


def test_every_key_and_algorithm_of_a_recipe_is_documented() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    for field in dataclasses.fields(Recipe):
        assert f"| `{field.name}` |" in text
    for algorithm in ALGORITHMS:
        row = next(line for line in text.splitlines() if line.startswith(f"| [`{algorithm.name}`]"))
        for option in dataclasses.fields(algorithm.options):
            plain = list(option.default) if isinstance(option.default, tuple) else option.default
            shown = str(plain).lower() if isinstance(plain, bool) else plain
            assert f"`{option.name}: {shown}`" in row, f"{algorithm.name}: {option.name} is {shown}"


def test_the_example_recipe_has_every_key() -> None:
    text = (ROOT / "examples" / "recipe.yaml").read_text("utf-8")
    missing = [
        field.name for field in dataclasses.fields(Recipe) if not re.search(rf"^{field.name}:", text, re.M)
    ]
    assert not missing, f"examples/recipe.yaml: {missing}"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{name}: {target}"


def test_decisions_are_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "README.md").read_text("utf-8")
    for page in folder.glob("0*.md"):
        assert f"({page.name})" in listed, page.name
        parts = [
            part
            for part in ("## Question", "## Measured", "## Decision", "## Costs")
            if part in page.read_text("utf-8")
        ]
        assert len(parts) == 4, page.name


def test_tables_are_known_and_their_files_are_filled() -> None:
    for page, name in zip(PAGES, NAMES, strict=True):
        tables = re.findall(r"<!-- table: (\S+) -->", page.read_text("utf-8"))
        assert set(tables) <= set(fill_tables.TABLES), name
        assert not tables or name in fill_tables.FILES, name
