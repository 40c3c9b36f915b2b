"""A logger of a library kept quiet for a while: what it would say is of no use to a user."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(logger: str, level: int) -> Iterator[None]:
    """Nothing below ``level`` from the logger of that name; afterwards it is as it was."""
    found = logging.getLogger(logger)
    before = found.level
    found.setLevel(level)
    try:
        yield
    finally:
        found.setLevel(before)
