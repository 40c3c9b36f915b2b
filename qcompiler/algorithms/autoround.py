"""Learn the rounding and the scales of all weights of a segment together, by gradient descent (AutoRound).

    minimise  |f(x; Q) - y|^2 / |y|^2     over   Q = (clamp(round(L), 0, 2^b - 1) - z) s

f is the segment, x what the quantized segments before it hand on, y what the float model computes there: so a segment also makes
up for the errors before it. Each row of y counts alike, as the norm behind it sees to in a decoder. L is a float *latent* for each
code, moved by signed gradient descent with momentum along the straight-through gradient (Cheng et al. 2023, equations 3 to 5, where
L = W / s + z + V and V is learned); s by Adam in log s. They start from what the quantizer before gave: L is W / s + z, moved where
need be to where it rounds to the quantizer's code. The samples that are held out judge: what is not better on them than the start is
dropped.

With ``clip: range`` the ends of each group's range are learned instead of s (OmniQuant, Shao et al. 2023, equation 2; AutoRound's
alpha and beta), and L moves with them:

    hi = hi_0 * 2 sigmoid(gamma),   lo = lo_0 * 2 sigmoid(beta),   s = (hi - lo) / (2^b - 1),   z = round(-lo / s)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.arrays import Device, fetch, place
from qcompiler.algorithms.limits import check_at_least
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.quant.affine import from_groups, round_to_codes, store_scale, to_groups
from qcompiler.quant.affine_tensor import AffineTensor, ZeroPoints
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.tensor import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

INSIDE = 0.49
"""How far from its code a latent may start: within rounding, and so close to the border that it crosses it when it should."""
BETA_1, BETA_2, TINY = 0.9, 0.95, 1e-30


class Segment(Protocol):
    """What is tuned: a function of its weights, with samples of its inputs and the outputs that it should have."""

    samples: int

    def outputs(self, index: int, weights: "Sequence[Tensor]") -> "list[Tensor]":
        """What it computes of a sample's inputs with these weights, float32 [N, K] each; gradients flow."""
        ...

    def targets(self, index: int) -> "list[Tensor]":
        """What it should compute."""
        ...

    def stepped(self, done: int, steps: int) -> None:
        """Told after each step, of how many: tuning takes most of a compile's time."""
        ...


@dataclass(frozen=True, slots=True)
class AutoRoundOptions:
    """How a segment is tuned.

    Attributes:
        steps: of gradient descent.
        batch: samples a step.
        reach: how far a latent can move in all, in codes (0.5 in the paper); steps shrink linearly to 0.
        scale_lr: relative change of a scale (of an end of the range) in the first step; 0 keeps them.
        clip: "scale" learns the scales for themselves; "range" learns both ends of each group's range, whole zero points with them
            (where there are none, the scales).
        held_out: share of the samples that are not learned from but judge; at least one where there are two.
        seed: of the order of the samples.
        device: where the segment runs.
    Raises:
        SchemeError: a value that makes no sense.
    """

    steps: int = 64
    batch: int = 1
    reach: float = 0.5
    scale_lr: float = 3e-3
    clip: Literal["scale", "range"] = "scale"
    held_out: float = 0.1
    seed: int = 0
    device: Device = "cpu"

    def __post_init__(self) -> None:
        check_at_least(self, steps=1, batch=1, seed=0)
        for name in ("reach", "scale_lr"):
            if not 0 <= getattr(self, name) <= 10:
                raise SchemeError(f"{name}: {getattr(self, name)}; must be from 0 to 10")
        if not 0 <= self.held_out < 1:
            raise SchemeError(f"held_out: {self.held_out}; must be 0 or more and less than 1")


@dataclass(frozen=True, slots=True)
class Tuned:
    """What became of a segment.

    Attributes:
        weights: those of the start where tuning gained nothing.
        before, after: relative squared error of the segment's output on the held-out samples.
    """

    weights: list[QuantizedTensor]
    before: float
    after: float


def tune(
    weights: Sequence[npt.NDArray[Any]],
    start: Sequence[AffineTensor],
    segment: Segment,
    options: AutoRoundOptions | None = None,
) -> Tuned:
    """Better codes and scales for the weights of a segment.

    Args:
        weights: float [N, K] each, what ``start`` stands for.
        start: what a quantizer made of them.
        segment: takes them in the same order.
    Raises:
        CalibrationError: there are no samples.
    """
    import torch

    if segment.samples < 1:
        raise CalibrationError(
            "autoround: no samples to learn from; give data (--calib), or leave autoround out"
        )

    options = options or AutoRoundOptions()
    learned = [_Learned(weight, tensor, options) for weight, tensor in zip(weights, start, strict=True)]
    judged, order = _split(segment.samples, options)
    before = best = _judge(segment, learned, judged)
    kept: Sequence[AffineTensor] = start
    checks = {options.steps, options.steps * 3 // 4, options.steps // 2}
    for step in range(1, options.steps + 1):
        rate = 1 - (step - 1) / options.steps
        values = [weight.values().requires_grad_() for weight in learned]
        for _ in range(options.batch):
            index = next(order)
            loss = _loss(segment.outputs(index, values), segment.targets(index))
            (loss / options.batch).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for weight, value in zip(learned, values, strict=True):
                if value.grad is not None:
                    weight.descend(value.grad, step, rate)
        if step in checks:
            error = _judge(segment, learned, judged)
            if error < best:
                best, kept = error, tuple(weight.tensor() for weight in learned)
        segment.stepped(step, options.steps)
    return Tuned(list(kept), before, best)


def _split(samples: int, options: AutoRoundOptions) -> tuple[list[int], Iterator[int]]:
    """The samples that judge, and the endless order of those that are learned from."""
    generator = np.random.default_rng(options.seed)
    shuffled = [int(index) for index in generator.permutation(samples)]
    count = min(max(round(samples * options.held_out), 1), samples - 1) if options.held_out else 0
    judged, used = shuffled[:count], shuffled[count:]

    def endless() -> Iterator[int]:
        while True:
            yield from (used[i] for i in generator.permutation(len(used)))

    return judged or used, endless()


def _judge(segment: Segment, learned: "Sequence[_Learned]", judged: Sequence[int]) -> float:
    import torch

    with torch.no_grad():
        values = [weight.values() for weight in learned]
        total = sum(float(_loss(segment.outputs(i, values), segment.targets(i))) for i in judged)
    return total / len(judged)


def _loss(outputs: "Sequence[Tensor]", targets: "Sequence[Tensor]") -> "Tensor":
    """Mean over rows of |f - y|^2 / |y|^2, over all outputs; of images (rank 4 and more) a row is the whole sample."""
    total: Any = 0.0
    for output, target in zip(outputs, targets, strict=True):
        along = (-1,) if target.ndim <= 3 else tuple(range(1, target.ndim))
        error = ((output - target) ** 2).sum(along)
        energy = (target**2).sum(along)
        # A row of hardly anything (padding, dead units) must not count without bound.
        total = total + (error / energy.clamp(min=0.01 * float(energy.mean()) + TINY)).mean()
    return total / len(outputs)  # type: ignore[no-any-return]


class _Learned:
    """One weight under training: latents and scales [N, G, g] and [N, G, 1] ([1, 1, 1] for a whole tensor)."""

    def __init__(self, weight: npt.NDArray[Any], start: AffineTensor, options: AutoRoundOptions) -> None:
        """Latents that round to the start's codes, as near to the weight as that allows."""
        self._scheme, self._k, self._options = start.scheme, start.shape[1], options
        self._rate = 2 * options.reach / options.steps  # steps that shrink linearly to 0 add up to ``reach``
        scale = place(start.scale, options.device)[..., None]
        stored = (
            np.full(start.scale.shape, self._scheme.midpoint)
            if start.zero_point is None
            else start.zero_point
        )
        zero_point = place(stored, options.device)[..., None]
        codes = to_groups(place(start.codes, options.device), self._scheme)
        values = to_groups(place(weight, options.device), self._scheme)
        exact = values / scale + zero_point
        self._latent: Tensor = exact.clamp(codes - INSIDE, codes + INSIDE)
        self._momentum = self._latent * 0
        self._weight: Tensor | None = None
        self._grid: _Scales | _Ranges
        movable = not self._scheme.symmetric and not self._scheme.has_float_zero_points
        if options.clip == "range" and movable:
            self._weight = values
            self._latent -= exact  # only what is added to it
            self._grid = _Ranges(self._scheme, scale, zero_point, options.scale_lr)
        else:
            self._grid = _Scales(self._scheme, scale, zero_point, options.scale_lr)

    def values(self) -> "Tensor":
        """The weight as it would be stored, float32 [N, K]."""
        scale, zero_point, latent = self._now()
        codes = round_to_codes(latent.clone(), self._scheme)
        values: Tensor = from_groups((codes - zero_point) * scale, self._k)
        return values.contiguous()

    def tensor(self) -> AffineTensor:
        """What would be stored."""
        scale, zero_point, latent = self._now()
        codes = from_groups(round_to_codes(latent.clone(), self._scheme), self._k)
        stored: ZeroPoints | None = None
        if self._scheme.has_float_zero_points:
            stored = fetch(zero_point[..., 0]).astype(np.float32)
        elif not self._scheme.symmetric:
            stored = fetch(zero_point[..., 0]).astype(np.uint8)
        return AffineTensor(
            self._scheme,
            np.ascontiguousarray(fetch(codes)).astype(np.uint8),
            np.ascontiguousarray(fetch(scale[..., 0])),
            stored,
        )

    def descend(self, gradient: "Tensor", step: int, rate: float) -> None:
        """One step along the gradient with respect to ``values``; ``step`` from 1, ``rate`` from 1 down to 0."""
        scale, zero_point, latent = self._now()
        along = to_groups(gradient, self._scheme)
        codes = round_to_codes(latent.clone(), self._scheme)
        # Straight through: a latent past the last code moves its weight no more, and need not go further.
        inside = (latent > -0.5) & (latent < self._scheme.max_code + 0.5)
        moving = along * inside
        self._momentum.mul_(BETA_1).add_(moving * scale)
        self._latent.sub_(self._momentum.sign(), alpha=self._rate * rate)
        if self._options.scale_lr == 0:
            return
        steps = codes - zero_point
        if self._weight is None:
            self._grid.descend((along * steps).sum_to_size(scale.shape), None, step, rate)
            return
        # The latent holds W / s + z, so s and z move it too; inside, z cancels.
        by_scale = along * steps - moving * self._weight / scale
        by_zero_point = (moving - along) * scale
        self._grid.descend(
            by_scale.sum_to_size(scale.shape), by_zero_point.sum_to_size(scale.shape), step, rate
        )

    def _now(self) -> "tuple[Tensor, Tensor, Tensor]":
        """Scale, zero point and latent."""
        scale, zero_point = self._grid.now()
        if self._weight is None:
            return scale, zero_point, self._latent
        return scale, zero_point, self._latent + self._weight / scale + zero_point


class _Scales:
    """Scales that are learned for themselves, in log |s|; their signs and zero points stay."""

    def __init__(self, scheme: QuantScheme, scale: "Tensor", zero_point: "Tensor", rate: float) -> None:
        self._scheme, self._zero_point, self._rate = scheme, zero_point, rate
        self._sign, self._log = scale.sign(), scale.abs().log()
        self._adam = _Adam(self._log)

    def now(self) -> "tuple[Tensor, Tensor]":
        """Scales that the scheme can store, and zero points."""
        return store_scale(self._exact(), self._scheme.scale_dtype), self._zero_point

    def descend(self, by_scale: "Tensor", by_zero_point: "Tensor | None", step: int, rate: float) -> None:
        """One step along the gradients with respect to what ``now`` gives."""
        self._log.sub_(self._adam.direction(by_scale * self._exact(), step), alpha=self._rate * rate)

    def _exact(self) -> "Tensor":
        """Scales before they are stored; also their derivative with respect to log |s|."""
        return self._sign * self._log.exp()


class _Ranges:
    """Ends of ranges: hi = hi_0 * 2 sigmoid(gamma), lo = lo_0 * 2 sigmoid(beta); scales and zero points follow."""

    def __init__(self, scheme: QuantScheme, scale: "Tensor", zero_point: "Tensor", rate: float) -> None:
        self._scheme, self._rate = scheme, rate
        self._low, self._high = -zero_point * scale, (scheme.max_code - zero_point) * scale
        self._parameters = [scale * 0, scale * 0]  # gamma, beta
        self._adams = [_Adam(parameter) for parameter in self._parameters]

    def now(self) -> "tuple[Tensor, Tensor]":
        """Scales that the scheme can store, and zero points."""
        scale, exact = self._exact()
        return store_scale(scale, self._scheme.scale_dtype), round_to_codes(exact.clone(), self._scheme)

    def descend(self, by_scale: "Tensor", by_zero_point: "Tensor | None", step: int, rate: float) -> None:
        """One step along the gradients with respect to what ``now`` gives; rounding is passed straight through."""
        import torch

        with torch.enable_grad():
            for parameter in self._parameters:
                parameter.requires_grad_()
            gradients = torch.autograd.grad(self._exact(), self._parameters, [by_scale, by_zero_point])
        for parameter, adam, gradient in zip(self._parameters, self._adams, gradients, strict=True):
            parameter.requires_grad_(False)
            # d sigmoid-range / d gamma is half the range: twice the rate makes it the relative change of an end
            parameter.sub_(adam.direction(gradient, step), alpha=2 * self._rate * rate)

    def _exact(self) -> "tuple[Tensor, Tensor]":
        """Scales and zero points before they are rounded."""
        gamma, beta = self._parameters
        high, low = self._high * 2 * gamma.sigmoid(), self._low * 2 * beta.sigmoid()
        scale = (high - low) / self._scheme.max_code
        return scale, -low / scale


class _Adam:
    """The direction of Adam (Kingma and Ba 2014, algorithm 1)."""

    def __init__(self, like: "Tensor") -> None:
        self._mean, self._square = like * 0, like * 0

    def direction(self, gradient: "Tensor", step: int) -> "Tensor":
        self._mean.mul_(BETA_1).add_(gradient, alpha=1 - BETA_1)
        self._square.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
        square = self._square / (1 - BETA_2**step)
        direction: Tensor = self._mean / (1 - BETA_1**step) / (square.sqrt() + TINY)
        return direction
