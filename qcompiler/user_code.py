"""What a user names as ``package.module:attribute``, found on the Python path or in the current folder."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qcompiler.errors import QCompilerError
from qcompiler.nearest import nearest


def import_reference(reference: str, kind: type[QCompilerError]) -> Any:
    """The function or object of that name.

    Raises:
        kind: not of the form ``package.module:attribute``, no such module or attribute, or a module that
            fails while it is imported.
    """
    module_name, _, attribute = reference.partition(":")
    if not attribute or not all(part.isidentifier() for part in (module_name + "." + attribute).split(".")):
        raise kind(f"{reference}: not the name of a function; write package.module:function")
    try:
        with _current_folder_too():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise kind(
            f"{reference}: no module {error.name}; is it installed, on PYTHONPATH or in the current folder?"
        ) from error
    except Exception as error:  # a user's module may raise anything while it is imported
        raise kind(f"{reference}: cannot be imported: {describe(error)}; correct the module") from error
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise kind(f"{reference}: {module_name} has no {attribute}; {nearest(part, public)}")
        found = getattr(found, part)
    return found


def describe(error: BaseException) -> str:
    """``ValueError: what it says``, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def _current_folder_too() -> Iterator[None]:
    """Last on the path, so that no file there hides an installed module."""
    here = str(Path.cwd())
    if here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)
