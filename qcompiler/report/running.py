"""How a model runs in a session, as plain values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunningProduct:
    """How one product runs.

    Attributes:
        kernels: what runs it: ``MatMulNBits (level 4)``; empty where it is in the optimized graph no more.
        nodes: their names there, or those of what they yield.
        providers: that run them.
        microseconds: of one run, with the unpacking of its weight; share: of all nodes. Products that one node runs have its time each.
        island: why a quantized product multiplies floats; empty where it does not.
    """

    kernels: list[str]
    nodes: list[str]
    providers: list[str]
    microseconds: float
    share: float
    island: str = ""


@dataclass(frozen=True)
class FloatIsland:
    """Float nodes between integers.

    Attributes:
        nodes: their names, or those of what they yield, in the order of the graph; ops: their operators.
        reads: what is unpacked for them.
        reason: why they compute in float.
        microseconds: of one run, with the unpacking before and the rounding behind; share: of all nodes.
    """

    nodes: list[str]
    ops: list[str]
    reads: list[str]
    reason: str
    microseconds: float
    share: float


@dataclass(frozen=True)
class RunningModel:
    """How a model runs.

    Attributes:
        providers: of the session.
        library: whether our operators were registered.
        inputs: shape of each input of the run that was profiled.
        nodes: of the optimized graph; microseconds: of all of them in one run.
        islands: float stretches between integers, but for single products, which say so themselves.
        operators: how many nodes each operator has, and their microseconds, slowest first.
    """

    providers: list[str]
    library: bool
    inputs: dict[str, list[int]]
    nodes: int
    microseconds: float
    islands: list[FloatIsland]
    operators: dict[str, tuple[int, float]]
