"""What each pass of a compile did to the outputs of the model, as plain data."""

from dataclasses import dataclass, field

from qcompiler.report.bisect_layers import LayerBisection


@dataclass(frozen=True)
class PassParity:
    """What a pass did to the outputs.

    Attributes:
        sqnr_db: the least of the outputs', against the float model; None where the pass changed nothing or the model does not run.
        max_error: the largest of the outputs'.
        kl: nats, of outputs that hold classes; None without any.
        why: why parity is broken here; empty where it holds.
        note: why it could not be measured.
        seconds: of the pass itself.
    """

    name: str
    modified: bool
    sqnr_db: float | None
    max_error: float | None
    kl: float | None
    why: str
    note: str
    seconds: float


@dataclass(frozen=True)
class PassBisection:
    """Where a compile breaks a model.

    Attributes:
        passes: all, in order.
        first: name of the first that breaks parity; None where none does.
        layers: where, within what that pass left, or the last pass if none breaks; None where that cannot be compared layer by layer.
        compile_seconds: what the compile took, and seconds everything.
    """

    model: str
    recipe: str
    bound: str
    data: str
    passes: list[PassParity]
    first: str | None
    layers: LayerBisection | None
    compile_seconds: float
    seconds: float
    notes: list[str] = field(default_factory=list)
