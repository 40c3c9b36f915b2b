"""What became of one weight: plain values, for the report and for checkpoints."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerResult:
    """What became of one weight.

    Attributes:
        output_error: tr(E H E^T) / tr(W H W^T), relative squared error of the layer's output; of the weight without statistics.
        weight_error: |E|^2 / |W|^2.
        sqnr_db: of the output.
        cosine: between the float and the stored weight.
        beside: what stands beside the codes: "rank 16".
    """

    name: str
    role: str
    op: str
    shape: tuple[int, int]
    scheme: str
    algorithm: str
    decided_by: str
    float_bytes: int
    stored_bytes: int
    output_error: float
    weight_error: float
    sqnr_db: float
    cosine: float
    notes: tuple[str, ...]
    beside: str = ""
