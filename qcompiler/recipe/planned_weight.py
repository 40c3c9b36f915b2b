"""One weight of a plan: its scheme, what its algorithm needs, and the bytes and memory that it takes."""

from dataclasses import dataclass, field

from qcompiler.algorithms import Need
from qcompiler.calibration.windows import groups_of
from qcompiler.graph.weights import Role, Weight
from qcompiler.quant.scheme import QuantScheme
from qcompiler.recipe.recipe import WeightSettings

BLOCK = 1 << 22  # numbers of a weight that algorithms turn to float32 at a time
FACTOR_COPIES = 4.8  # of the Hessian while it is factored: itself, its factor, the inverse, a copy in another order, workspace


@dataclass(eq=False)
class PlannedWeight:
    """One weight that will be quantized.

    Attributes:
        scheme: fitted to the weight's K.
        settings: the recipe's word, with the line that decided.
        notes: what a user should know: a group that was adjusted, statistics that cannot be had.
        without_data: no statistics are to be had for it, and its scales come from the weight alone.
    """

    weight: Weight
    scheme: QuantScheme
    settings: WeightSettings
    notes: list[str] = field(default_factory=list)
    without_data: bool = False

    @property
    def needs(self) -> frozenset[Need]:
        """The statistics that any of its algorithm's steps asks for; a table of rows has no input to observe, and of a convolution
        with groups of channels there are Hessians alone."""
        if self.without_data or all(use.role is Role.EMBEDDING for use in self.weight.uses):
            return frozenset()
        if self.groups > 1:
            return frozenset({Need.HESSIAN} if self.settings.quantizer.algorithm.in_groups else ())
        return frozenset(need for step in self.settings.algorithm for need in step.algorithm.needs)

    @property
    def algorithm(self) -> str:
        """Names of the steps: "awq + mse"."""
        return " + ".join(step.name for step in self.settings.algorithm)

    @property
    def observes_hessian(self) -> bool:
        """Whether calibration holds a K x K matrix for it."""
        return Need.HESSIAN in self.needs

    @property
    def groups(self) -> int:
        """Of a convolution's channels; 1 for other products."""
        return max((groups_of(use.node) for use in self.weight.uses if use.role is Role.CONV), default=1)

    @property
    def hessian_bytes(self) -> int:
        """Of a float32 matrix K x K, of groups of one for each."""
        return 4 * self.groups * self.weight.shape[1] ** 2

    def work_bytes(self, mixed: bool) -> int:
        """Anonymous memory while its codes are found: Hessian, codes, blocks of rows; the weight itself is mapped.

        The numbers of copies were measured, GPTQ with K from 1024 to 6144: the factor takes 4.8 Hessians, rounding 3 and some 8 blocks.
        """
        n, k = self.weight.shape
        block, codes, square = 4 * min(n * k, BLOCK), n * k, self.hessian_bytes
        if not self.needs and not mixed:
            return 3 * block + 2 * codes
        settings = self.settings
        if mixed or settings.refinements:  # these hold the whole weight and its error as float32
            return 14 * n * k + (7 if settings.quantizer.algorithm.spreads else 3) * square
        scaled = (
            4 * n * k if settings.transforms else 0
        )  # factors that are still to be multiplied make a copy
        if settings.quantizer.algorithm.spreads:
            return codes + scaled + max(int(FACTOR_COPIES * square), 3 * square + 8 * block)
        held = (2 if settings.transforms else 1) * square if self.observes_hessian else 0
        if settings.quantizer.algorithm.beside is not None:
            held += 4 * n * k  # a copy without what is kept
        return codes + scaled + held + 6 * block

    @property
    def stored_bytes(self) -> int:
        """Bytes of codes, scales and zero points, and of what stands beside them."""
        return self.bytes_of(self.scheme)

    def bytes_of(self, scheme: QuantScheme) -> int:
        """The same in another scheme."""
        n, k = self.weight.shape
        beside = (
            step.algorithm.beside(step.options, scheme, n, k)
            for step in self.settings.algorithm
            if step.algorithm.beside is not None
        )
        return scheme.stored_bytes(n, k) + sum(beside)
