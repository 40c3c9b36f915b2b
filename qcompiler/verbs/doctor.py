"""``qcompile doctor``: what this machine can run."""

from dataclasses import asdict
from pathlib import Path

import click

from qcompiler.verbs.options import json_option, traceback_option
from qcompiler.verbs.show import show


@click.command("doctor", epilog="Example: qcompile doctor")
@json_option
@traceback_option
def doctor_verb(as_json: bool) -> None:
    """What this machine can run, and what is missing."""
    from qcompiler.report.doctor import doctor_table, examine

    findings = examine(Path())
    show([asdict(finding) for finding in findings] if as_json else doctor_table(findings))
