"""Bounds on the numbers among an algorithm's options, checked when the options are made."""

from qcompiler.errors import SchemeError


def check_at_least(options: object, **least: int) -> None:
    """Raises SchemeError for the first field that is below its least value; names it."""
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise SchemeError(f"{name}: {getattr(options, name)} is below {bound}; give at least {bound}")
