"""Bounds on the numbers among an algorithm's options, checked when the options are made."""

from qcompiler.errors import SchemeError


def check_at_least(options: object, **least: int) -> None:
    """Raises SchemeError for the first field that is below its least value; names it."""
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise SchemeError(f"{name}: {getattr(options, name)} is below {bound}; give at least {bound}")


def check_share(options: object, name: str) -> None:
    """Raises SchemeError unless the field is a share of the range: more than 0, at most 1."""
    share = getattr(options, name)
    if not 0 < share <= 1:  # NaN too
        raise SchemeError(f"{name}: {share} is no share of the range; give more than 0, at most 1")
