"""From scores to gate weights: the softmax over the experts that may take part.

Guarantees: what an expert is given does not depend on experts that are masked out, to the last bit: every sum runs in
the order of expert ids, so that removing a term of zero changes no rounding.

    weights = gate_weights(scores, mask, top_k=None, normalise=True)  # (tokens, experts), sums to 1
"""

import torch
from torch import Tensor


def gate_weights(logits: Tensor, mask: Tensor | None, top_k: int | None, normalise: bool) -> Tensor:
    """How much each expert counts for each token: (tokens, experts), zero for experts that do not take part.

    The softmax of `logits` (tokens, experts) over the experts that `mask` (tokens, experts; None allows all) allows;
    then only the `top_k` largest, ties to the lower id, clamped per token to the number allowed; then scaled to sum to
    one if `normalise`. Every token must be allowed at least one expert.
    """
    allowed = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
    columns = (allowed - allowed.detach().amax(dim=-1, keepdim=True)).unbind(dim=-1)
    weights = torch.stack([column.contiguous().exp() for column in columns], dim=-1)
    return among_largest(weights / sum_in_order(weights), allowed, top_k, normalise)


def among_largest(weights: Tensor, ranking: Tensor, top_k: int | None, normalise: bool) -> Tensor:
    """The weights (tokens, experts) of each token's `top_k` experts that rank highest, the others' zero.

    Ties go to the lower id; None keeps all; what is left is scaled to sum to one if `normalise`.
    """
    if top_k is None:
        return weights
    # Also when every expert is among the top k: dividing once more rounds, and removal must not change the rounding.
    weights = weights.masked_fill(~_largest(ranking, top_k), 0.0)
    return weights / sum_in_order(weights) if normalise else weights


def sum_in_order(weights: Tensor) -> Tensor:
    """The sum over experts, keeping the dimension. `Tensor.sum` may group the terms otherwise when one more is zero."""
    total, *rest = weights.unbind(dim=-1)
    for column in rest:
        total = total + column
    return total.unsqueeze(-1)


def _largest(logits: Tensor, top_k: int) -> Tensor:
    """True at each token's `top_k` largest logits. `Tensor.topk` leaves ties open; a stable sort does not."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order[..., :top_k], True)
