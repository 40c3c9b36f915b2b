"""An ONNX graph-rewriting quantization compiler.

    result  = qcompiler.compile("model.onnx", recipe="w4a16-awq", output="out/")
    session = qcompiler.create_session("out/model.onnx")

Names are loaded when first used, so that an application which only creates sessions needs numpy and
onnxruntime, and neither torch nor the compiler's own dependencies.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcompiler.api import compile
    from qcompiler.recipe import Recipe
    from qcompiler.runtime import create_session, library_path, register

__all__ = ["Recipe", "compile", "create_session", "library_path", "register"]

_HOME = {
    "Recipe": "qcompiler.recipe",
    "compile": "qcompiler.api",
    "create_session": "qcompiler.runtime",
    "library_path": "qcompiler.runtime",
    "register": "qcompiler.runtime",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next access is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
