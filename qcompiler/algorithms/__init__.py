"""The algorithms: one file each, one row each in the table below.

A transform finds a scale for a layer's input channels; a quantizer turns (weight, statistics, scheme, options)
into a QuantizedTensor; a refinement makes a better one of that; a reconstruction makes better ones of all that a
segment of the model has. None of them knows a graph. Users add theirs as
``package.module:function`` or as an entry point in the group ``qcompiler.algorithms``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import entry_points
from typing import Any, Literal, get_args

import numpy as np

from qcompiler.algorithms import (
    adaround,
    autoround,
    awq,
    codebook,
    float8,
    gptq,
    hqq,
    kquant,
    llmint8,
    lorc,
    mse,
    outlier_suppression,
    rtn,
    smoothquant,
    spqr,
)
from qcompiler.errors import QCompilerError, SchemeError
from qcompiler.nearest import nearest
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.codebook import CodebookTensor
from qcompiler.quant.float8 import Float8Tensor
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.tensor import BaseTensor, CorrectedTensor, QuantizedTensor
from qcompiler.quant.two_level import TwoLevelTensor
from qcompiler.user_code import describe, import_reference

ENTRY_POINTS = "qcompiler.algorithms"


Kind = Literal["transform", "quantizer", "refinement", "reconstruction"]
"""In the order in which a recipe lists them."""


class Need(str, Enum):
    """What calibration has to gather for an algorithm."""

    HESSIAN = "hessian"
    """InputStatistics.hessian."""
    CHANNELS = "channels"
    """InputStatistics.mean_abs, max_abs, mean_square, lowest, highest and mean."""
    ROWS = "rows"
    """InputStatistics.sample."""


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of an algorithm that has none."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One row of the table.

    Attributes:
        kind: "quantizer": run(weight, statistics, scheme, options) -> QuantizedTensor, statistics may be None
            where ``needs`` is empty or the data is missing; "transform": run(weights, statistics, schemes,
            options, tie), where it is for ``activations`` with what rounds those (quant.activations) as a last argument;
            "refinement": run(weight, quantized, statistics, options) -> QuantizedTensor, where it
            ``requantizes`` with a last argument: what the quantizer makes of another weight [N, K];
            "reconstruction": run(weights, quantized, segment, options) -> autoround.Tuned, over all weights of a
            segment that it is asked for.
        needs: the statistics that make it better than without.
        options: a frozen dataclass, every field with a default.
        spreads: whether it makes up for the error of one column with others, so that transforms before it
            should weigh an error by what remains (InputStatistics.remaining).
        in_groups: of a quantizer: it takes GroupedStatistics too, those of a convolution with groups of channels.
        codebooks: whether it knows codes that are indices of a table (QuantScheme.dtype nf4 and the like).
        float8: whether it knows codes that are floats of 8 bits.
        two_level: of a quantizer: it finds two-level scales (QuantScheme.two_level), and no others.
        activations: it is for activations that are rounded; a transform is told how.
        whole_zero_points: of a quantizer: it needs a code that means 0, which float zero points do not promise.
        either_axis: whether it can have groups of rows (QuantScheme.group_axis "output").
        beside: of one whose result may be a CorrectedTensor: the bytes that are known to stand beside the codes, from its options, the
            scheme, N and K.
            Such a result is for products alone; no row of it can be gathered.
        outliers: of the same: whether outliers are among them.
        remark: what is to be said of its options for a weight, from the options, N and K; None where there is nothing.
    Raises:
        SchemeError: another kind.
    """

    name: str
    kind: Kind
    needs: frozenset[Need]
    options: type[Any]
    run: Callable[..., Any]
    spreads: bool = False
    in_groups: bool = False
    codebooks: bool = False
    float8: bool = False
    requantizes: bool = False
    two_level: bool = False
    activations: bool = False
    whole_zero_points: bool = False
    either_axis: bool = False
    beside: Callable[[Any, QuantScheme, int, int], int] | None = None
    outliers: bool = False
    remark: Callable[[Any, int, int], str | None] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SchemeError(
                f"{self.name}: kind {self.kind!r} is none of {', '.join(get_args(Kind))}; give the Algorithm one of them"
            )


ALGORITHMS = (
    Algorithm(
        "rtn",
        "quantizer",
        frozenset(),
        rtn.RtnOptions,
        codebook.beside(rtn.quantize, codebook.round_to_nearest, float8.round_to_nearest),
        codebooks=True,
        float8=True,
        either_axis=True,
    ),
    Algorithm(
        "mse",
        "quantizer",
        frozenset({Need.HESSIAN}),
        mse.MseOptions,
        codebook.beside(mse.quantize, codebook.search),
        codebooks=True,
        either_axis=True,
    ),
    Algorithm("hqq", "quantizer", frozenset(), hqq.HqqOptions, hqq.quantize, either_axis=True),
    Algorithm(
        "kquant",
        "quantizer",
        frozenset({Need.CHANNELS}),
        kquant.KquantOptions,
        kquant.quantize,
        two_level=True,
    ),
    Algorithm(
        "gptq",
        "quantizer",
        frozenset({Need.HESSIAN}),
        gptq.GptqOptions,
        gptq.quantize,
        spreads=True,
        in_groups=True,
    ),
    Algorithm(
        "adaround",
        "quantizer",
        frozenset({Need.HESSIAN}),
        adaround.AdaroundOptions,
        adaround.quantize,
        spreads=True,
        in_groups=True,
    ),
    Algorithm(
        "spqr",
        "quantizer",
        frozenset({Need.HESSIAN}),
        spqr.SpqrOptions,
        spqr.quantize,
        spreads=True,
        whole_zero_points=True,
        beside=spqr.stored_bytes,
        outliers=True,
    ),
    Algorithm(
        "llmint8",
        "quantizer",
        frozenset({Need.CHANNELS}),
        llmint8.LlmInt8Options,
        llmint8.quantize,
        activations=True,
        whole_zero_points=True,
        beside=llmint8.stored_bytes,
    ),
    Algorithm(
        "awq",
        "transform",
        frozenset({Need.HESSIAN, Need.CHANNELS}),
        awq.AwqOptions,
        awq.search_scale,
        codebooks=True,
    ),
    Algorithm(
        "smoothquant",
        "transform",
        frozenset({Need.CHANNELS, Need.ROWS}),
        smoothquant.SmoothQuantOptions,
        smoothquant.search_scale,
        activations=True,
    ),
    Algorithm(
        "outlier-suppression",
        "transform",
        frozenset({Need.CHANNELS, Need.ROWS}),
        outlier_suppression.OutlierSuppressionOptions,
        outlier_suppression.search,
        activations=True,
    ),
    Algorithm(
        "lorc",
        "refinement",
        frozenset({Need.HESSIAN}),
        lorc.LorcOptions,
        lorc.correct,
        codebooks=True,
        requantizes=True,
        beside=lorc.stored_bytes,
        remark=lorc.remark,
    ),
    Algorithm(
        "autoround",
        "reconstruction",
        frozenset({Need.HESSIAN}),  # by which the errors of what it made are reported
        autoround.AutoRoundOptions,
        autoround.tune,
    ),
)


def find(name: str) -> Algorithm:
    """The algorithm of that name: ours, an installed entry point, or a user's ``package.module:function``.

    What a user's name leads to is an Algorithm, or a function that is taken for a quantizer which needs the
    Hessian and has no options.

    Raises:
        SchemeError: no such algorithm; the nearest names are given.
    """
    for algorithm in ALGORITHMS:
        if algorithm.name == name:
            return algorithm
    if ":" in name:
        return _as_algorithm(name, name)
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in installed:
        return _as_algorithm(name, installed[name].value)
    known = [*(algorithm.name for algorithm in ALGORITHMS), *installed]
    raise SchemeError(
        f"algorithm: {name!r} is not known; {nearest(name, known)} (your own: package.module:function)"
    )


def call(algorithm: Algorithm, where: str, *arguments: Any) -> Any:
    """What ``algorithm.run`` gives for the arguments.

    Args:
        where: the layer, for messages.
    Raises:
        QCompilerError: the algorithm's own refusal, with the layer before it.
        SchemeError: a user's function raised something else; names the algorithm and the layer.
    """
    try:
        return algorithm.run(*arguments)
    except QCompilerError as refusal:
        raise type(refusal)(f"{where}: {refusal}") from refusal
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # a user's function may raise anything, and what it was doing is not in its message
        if algorithm in ALGORITHMS:  # a defect of ours: shown as it is, with the place
            error.add_note(f"it was at {where}, algorithm {algorithm.name}")
            raise
        raise SchemeError(
            f"{where}: algorithm {algorithm.name} raised {describe(error)}; correct it, --traceback shows where"
        ) from error


def checked(result: object, scheme: QuantScheme, shape: tuple[int, int], where: str) -> QuantizedTensor:
    """What a quantizer returned, if it is the weight that was planned.

    Args:
        shape: (N, K).
        where: the layer and the algorithm, for messages.
    Raises:
        SchemeError: no QuantizedTensor, one of another scheme or shape, or numbers that cannot be stored.
    """
    if isinstance(result, CorrectedTensor):  # what stands beside the codes checks itself
        checked(result.base, scheme, shape, where)
        return result
    kind: type[BaseTensor] = AffineTensor
    if scheme.dtype != "int":
        kind = CodebookTensor if scheme.is_codebook else Float8Tensor
    elif scheme.two_level:
        kind = TwoLevelTensor
    if not isinstance(result, (AffineTensor, CodebookTensor, TwoLevelTensor, Float8Tensor)):
        article = "an" if kind is AffineTensor else "a"
        raise SchemeError(f"{where}: returned {type(result).__name__}; return {article} {kind.__name__}")
    if result.scheme != scheme:
        raise SchemeError(
            f"{where}: returned {_described(result.scheme)} where {_described(scheme)} was asked for; "
            "keep the scheme that the function is given"
        )
    if result.shape != shape:
        raise SchemeError(
            f"{where}: returned {result.shape} for a weight of {shape}; give every weight its code"
        )
    parts = (result.codes, getattr(result, "code_zero_point", None))
    largest = max(part.max(initial=0) for part in parts if part is not None)
    if largest > scheme.max_code:
        raise SchemeError(
            f"{where}: returned the code {largest}; {scheme.bits} bits hold 0 to {scheme.max_code}"
        )
    levels = (result.scales, result.minima) if isinstance(result, TwoLevelTensor) else ()
    steps = [level.step for level in levels if level is not None]
    if not all(np.isfinite(part).all() for part in steps or [result.scale]):
        raise SchemeError(f"{where}: returned a scale of NaN or infinity; every scale must be a number")
    if scheme.has_float_zero_points and not np.isfinite(getattr(result, "zero_point", 0)).all():
        raise SchemeError(
            f"{where}: returned a zero point of NaN or infinity; every zero point must be a number"
        )
    return result


def _described(scheme: QuantScheme) -> str:
    return f"{scheme.label} with {scheme.scale_dtype} scales"


def _as_algorithm(name: str, reference: str) -> Algorithm:
    try:
        found = import_reference(reference, SchemeError)
    except SchemeError as error:
        raise SchemeError(f"algorithm: {error}") from error
    if isinstance(found, Algorithm):
        return found
    if not callable(found):
        raise SchemeError(
            f"algorithm: {name}: must be a function or an Algorithm, not {type(found).__name__}"
        )
    return Algorithm(name, "quantizer", frozenset({Need.HESSIAN}), NoOptions, found, codebooks=True)
