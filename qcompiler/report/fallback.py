"""What ``--max-drop`` did, for the report."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fallback:
    """What ``--max-drop`` did.

    Attributes:
        max_drop: the share that is allowed.
        measure: what of.
        drop: the result's.
        layers: names of the weights that went back to float, the most felt first.
        losses: what the model loses by each of them alone (see ``passes/product_sensitivity``).
        tried: for each compile in turn how many layers were float, and the drop that was measured.
    """

    max_drop: float
    measure: str
    drop: float
    layers: tuple[str, ...]
    losses: tuple[float, ...]
    tried: tuple[tuple[int, float], ...]
