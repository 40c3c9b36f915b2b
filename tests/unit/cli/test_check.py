"""``qcompile check``: what it says and how it ends."""

import json
import math
from pathlib import Path

from tests import command_models as models
from tests.command_line import Command
from tests.command_models import tokenizer
from tests.float_between_integers import float_between_integers


def test_status_three_and_what_is_said(tmp_path: Path, run: Command) -> None:
    path = float_between_integers(tmp_path)
    broken = run("check", str(path), "--bound", "40")
    assert broken.status == 3 and "parts at Conv node_c2" in broken.out and broken.out.count("parts at") == 1
    told = run("check", str(path), "--bound", "40", "--json")
    assert told.status == 3 and json.loads(told.out)["holds"] is False
    held = run("check", str(path))
    assert held.status == 0 and "breaks" not in held.out


def test_a_model_that_gives_no_numbers_breaks(tmp_path: Path, run: Command) -> None:
    found = run("check", models.mlp(tmp_path, spoil=math.nan))
    assert found.status == 3 and "no numbers" in found.out and "holds" not in found.out


def test_a_text_is_not_for_every_model(tmp_path: Path, run: Command) -> None:
    text = tmp_path / "t.txt"
    text.write_text("a b c d e f")
    tokenizer(tmp_path)
    told = run("check", models.mlp(tmp_path), "--text", text, "--length", "4").error
    assert "text is for language models" in told and "--data" in told
    long = run("check", models.decoder(tmp_path), "--text", text, "--length", "40").error
    assert "a smaller --length" in long
    one = run("check", models.decoder(tmp_path), "--text", text, "--length", "4", "--windows", "1")
    assert "on 1 feed of" in one.out
    missing = run("check", models.mlp(tmp_path), "--data", "none.npz").error
    assert "none.npz: no such file" in missing and "calibration" not in missing
