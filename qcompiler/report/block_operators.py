"""Operators of a model before and after, block by block."""

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.graph.blocks import blocks
from qcompiler.graph.operator_body import is_ours


@dataclass(frozen=True)
class BlockOperators:
    """Nodes of one block, by operator, most frequent first.

    Attributes:
        block: its path; empty for what lies outside of any.
        before: of the reference; empty where there is none.
    """

    block: str
    before: dict[str, int]
    after: dict[str, int]


def block_operators(reference: ir.Model | None, model: ir.Model) -> list[BlockOperators]:
    """Of both models, blocks in the order of the model's graph."""
    before = {} if reference is None else _counts(reference)
    after = _counts(model)
    return [
        BlockOperators(block, _ordered(before.get(block)), _ordered(after.get(block)))
        for block in dict.fromkeys([*after, *before])
    ]


def _counts(model: ir.Model) -> dict[str, Counter[str]]:
    ours = {node for body in filter(is_ours, model.functions.values()) for node in body}
    counts: dict[str, Counter[str]] = {}
    for node, block in blocks(model).items():
        if node in ours:
            continue  # what a node of ours computes is said by its body; the node itself is counted
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        counts.setdefault(block, Counter())[name] += 1
    return counts


def _ordered(counts: Counter[str] | None) -> dict[str, int]:
    return dict(sorted((counts or {}).items(), key=lambda item: (-item[1], item[0])))
