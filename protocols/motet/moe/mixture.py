"""A mixture of feed-forward networks in place of one, and the gate that weighs them.

Guarantees: an expert that is masked out is never executed, and what remains is computed as if it did not exist. To
that end every score is computed on its own and every sum runs in the order of expert ids, so that removing a term of
zero changes no rounding.

    weights = gate_weights(router(hidden), mask, top_k=None, normalise=True)  # (tokens, experts)
    output = Mixture(experts, router, top_k=None, normalise=True)(hidden, expert_mask)
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional


def gate_weights(logits: Tensor, mask: Tensor | None, top_k: int | None, normalise: bool) -> Tensor:
    """How much each expert counts for each token: (tokens, experts), zero for experts that do not take part.

    The softmax of `logits` (tokens, experts) over the experts that `mask` (tokens, experts; None allows all) allows;
    then only the `top_k` largest, ties to the lower id, clamped per token to the number allowed; then scaled to sum to
    one if `normalise`. Every token must be allowed at least one expert.
    """
    allowed = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
    columns = (allowed - allowed.detach().amax(dim=-1, keepdim=True)).unbind(dim=-1)
    weights = torch.stack([column.contiguous().exp() for column in columns], dim=-1)
    weights = weights / _sum_in_order(weights)
    if top_k is None:
        return weights
    # Also when every expert is among the top k: dividing once more rounds, and removal must not change the rounding.
    weights = weights.masked_fill(~_largest(allowed, top_k), 0.0)
    return weights / _sum_in_order(weights) if normalise else weights


def _sum_in_order(weights: Tensor) -> Tensor:
    """The sum over experts, keeping the dimension. `Tensor.sum` may group the terms otherwise when one more is zero."""
    total, *rest = weights.unbind(dim=-1)
    for column in rest:
        total = total + column
    return total.unsqueeze(-1)


def _largest(logits: Tensor, top_k: int) -> Tensor:
    """True at each token's `top_k` largest logits. `Tensor.topk` leaves ties open; a stable sort does not."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order[..., :top_k], True)


class Router(nn.Linear):
    """One routing row per expert, its log prior in the bias; scores in nats.

    Keeps at least float32: a score in bfloat16 has three digits, and a softmax turns its error into a factor.
    """

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        wide = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        super().__init__(hidden_size, num_experts, dtype=wide)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (tokens, hidden) of any dtype -> (tokens, experts) in the router's dtype."""
        with torch.autocast(hidden.device.type, enabled=False):
            wide = hidden.to(self.weight.dtype)
            # One row at a time: a product with all rows at once rounds differently when one of them is gone.
            rows = zip(self.weight.unsqueeze(1), self.bias.unsqueeze(1), strict=True)
            return torch.cat([functional.linear(wide, weight, bias) for weight, bias in rows], dim=-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def widened(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        super()._apply(widened, recurse)  # type: ignore[no-untyped-call]
        return self


class Mixture(nn.Module):
    """Feed-forward networks of one shape, weighed per token by a router. Expert 0 is the anchor's."""

    def __init__(self, experts: Sequence[nn.Module], router: Router, *, top_k: int | None, normalise: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = router
        self.top_k = top_k
        self.normalise = normalise

    def route(self, hidden: Tensor, expert_mask: Tensor | None = None) -> Tensor:
        """The gate weights of hidden (batch, seq, hidden) under a mask (batch, experts): (batch * seq, experts)."""
        batch, length, width = hidden.shape
        mask = None if expert_mask is None else expert_mask.to(hidden.device).repeat_interleave(length, dim=0)
        return gate_weights(self.router(hidden.reshape(batch * length, width)), mask, self.top_k, self.normalise)

    def forward(self, hidden: Tensor, expert_mask: Tensor | None = None) -> Tensor:
        """hidden (batch, seq, hidden), expert_mask (batch, experts) bool or None for all -> (batch, seq, hidden)."""
        weights = self.route(hidden, expert_mask)  # (tokens, experts)
        tokens = hidden.reshape(-1, hidden.shape[-1])
        mixed = torch.zeros_like(tokens, dtype=weights.dtype)
        for expert, column in zip(self.experts, weights.unbind(dim=-1), strict=True):
            taking_part = column.nonzero().squeeze(-1)
            if len(taking_part) == len(tokens):
                mixed = mixed + column.unsqueeze(-1) * expert(tokens)
            elif len(taking_part):
                part = column[taking_part].unsqueeze(-1) * expert(tokens[taking_part])
                mixed = mixed.index_add(0, taking_part, part)
        return mixed.to(hidden.dtype).reshape(hidden.shape)
