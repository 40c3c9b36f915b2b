"""The place of a node in its author's modules, as far as names tell it, and which block of the model that place is in.

A block is what a model repeats: ``model.layers.3``, ``features.5``, ``blocks.2.0``, ``layer1.0``. Its name is a module path up to and
with its index; indices right behind one another belong together, and so do those of stages and the blocks in them
(``stages.0.blocks.1``).
"""

import re

import onnx_ir as ir

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
NAMESPACE_KEY = "namespace"

_INDEX = re.compile(r"_?\d+")
_WORD = re.compile(r"(?:.*_)?(?:blocks?|layers?|stages?|expanded_conv)_?\d+[a-z]?(?=_|$)")
"""Components of TensorFlow and torchvision that hold an index: ``block_3_expand``, ``layer1``."""
_INNER = frozenset({"blocks", "layers"})
"""Behind an index these name the blocks of a stage, not parts of a block."""


def exporter_scope(node: ir.Node) -> str | None:
    """Module path that torch.onnx wrote into the node, ``""`` for the model itself; None where nothing is written."""
    text = node.metadata_props.get(SCOPES_KEY)
    if text:
        parts = [part.strip().strip("'\"") for part in text.strip("[]").split(",")]
    else:
        text = node.metadata_props.get(NAMESPACE_KEY)
        if not text:
            return None
        parts = [part.split(":")[0].strip() for part in text.split("/")]
    return next((part for part in reversed(parts[:-1]) if part), "")


def module_of(name: str) -> str:
    """The module path in the name of a node, a value or a weight: all but its last part.

    ``/model/layers.3/mlp/down_proj/MatMul`` gives ``model.layers.3.mlp.down_proj``; parts that repeat the one before
    (``/features/features.0``) count once.
    """
    parts: list[str] = []
    for part in name.split("/"):
        if parts and (part == parts[-1] or part.startswith(f"{parts[-1]}.")):
            parts.pop()
        if part:
            parts.append(part)
    return ".".join(".".join(parts).split(".")[:-1])


def block_of(path: str) -> str:
    """The block that a module path is in; ``""`` where the path has no index."""
    parts = path.split(".")
    for place, part in enumerate(parts):
        word = _WORD.match(part)
        if word is not None:
            head = [*parts[:place], word.group()]
            return ".".join(head + _inner(parts[place + 1 :]))
        if _INDEX.fullmatch(part) and (place > 0 or len(parts) > 1):
            return ".".join(parts[: place + 1] + _inner(parts[place + 1 :]))
    return ""


def _inner(rest: list[str]) -> list[str]:
    """What more of a path names the block: indices that are no last part, and those of blocks in a stage."""
    if len(rest) > 1 and rest[0].isdigit():
        return [rest[0], *_inner(rest[1:])]
    if len(rest) > 1 and rest[0] in _INNER and rest[1].isdigit():
        return [*rest[:2], *_inner(rest[2:])]
    return []
