"""Fisher scores: by how much a loss rises when a weight changes a little, from gradients of the model as it is.

    KL(p_W || p_W+E)  ~  1/2 <E, F E>,      F = E_x E_y~p(y|x) [ d log p(y|x) d log p(y|x)^T ]

F is the Fisher information (Kunstner, Hennig & Balles 2019, *Limitations of the empirical Fisher approximation for natural gradient
descent*, arXiv:1905.12558, equation 2), and the labels y are drawn from the model's own distribution: with the next tokens of a text in
their place, the empirical Fisher, it is no curvature (their section 3). Labels of different tokens are drawn independently and d log p has
mean 0, so the gradient g of the sum over a sample's T tokens has E[g g^T] = T F: one backward run gives an estimate that is right on
average, with what a weight does to later tokens in it.

Of F the diagonal is kept (as SqueezeLLM does, Kim et al. 2023, arXiv:2306.07629, section 4.1):

    L(E)  ~  1/2 sum_ij F_ij E_ij^2,        F_ij = g_ij^2 / T

Rounding errors have either sign, so what is off the diagonal mostly cancels. Not to drop it, <g, E>^2 / T, leaves one number squared of a
whole run, which is off by more than weights differ; to square token by token drops what the tokens share, and predicts less well (both
measured, docs/algorithms/mixed.md).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


def drawn_score(logits: "Tensor", generator: "Generator") -> "Tensor":
    """d/d logits of log p(y), y drawn from p = softmax(logits): one-hot(y) - p.

    Args:
        logits: [..., classes]; each row is a distribution.
        generator: what y is drawn with.
    Returns:
        of the shape of ``logits``.
    """
    import torch

    rows = logits.reshape(-1, logits.shape[-1])
    p = torch.softmax(rows, -1)
    labels = torch.multinomial(p, 1, generator=generator)
    return (-p).scatter_add_(1, labels, torch.ones_like(labels, dtype=p.dtype)).reshape(logits.shape)


def random_signs(output: "Tensor", generator: "Generator") -> "Tensor":
    """-1 or 1 for each number of an output y: z with E[z z^T] = 1, so that E[(d<z, y>)^2] = |dy|^2 (Hutchinson 1990).

    The same for squared errors as ``drawn_score`` for KL, without the 1/2: the Fisher information of a normal distribution around y.

    Returns:
        of the shape and type of ``output``.
    """
    import torch

    return torch.randint(0, 2, output.shape, generator=generator, dtype=torch.int8).to(output.dtype) * 2 - 1


def gradient_of_weight(reads: "Tensor", at_result: "Tensor", shape: tuple[int, int]) -> "Tensor":
    """The gradient [N, K] of a weight, from that at the result of its product.

    Args:
        reads: float activations [..., K], or whole numbers [...]: the rows that are gathered.
        at_result: [..., N], or [..., K] of gathered rows.
        shape: (N, K).
    Returns:
        float32 [N, K].
    """
    import torch

    n, k = shape
    if reads.is_floating_point():
        gradient: Tensor = at_result.reshape(-1, n).T @ reads.reshape(-1, k)
        return gradient
    # A negative index counts from the end.
    return torch.zeros(n, k).index_add_(0, reads.reshape(-1).long() % n, at_result.reshape(-1, k))
