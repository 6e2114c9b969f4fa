"""A mixture of feed-forward networks in place of one, weighed by a gate.

Guarantees: an expert that is masked out is never executed, and what remains is computed as if it did not exist. To
that end every score is computed on its own, and every sum runs in the order of expert ids.

    output = Mixture(experts, router, Gate(top_k=None, normalise=True))(hidden, Routing(expert_mask=mask))
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from motet.moe.gate import Gate, Routing
from motet.moe.wide import Wide, wide_dtype


class Router(Wide, nn.Linear):
    """One routing row per expert, its log prior in the bias; scores in nats."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__(hidden_size, num_experts, dtype=wide_dtype())

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (tokens, hidden) of any dtype -> (tokens, experts) in the router's dtype."""
        with torch.autocast(hidden.device.type, enabled=False):
            wide = hidden.to(self.weight.dtype)
            # One row at a time: a product with all rows at once rounds differently when one of them is gone.
            rows = zip(self.weight.unsqueeze(1), self.bias.unsqueeze(1), strict=True)
            return torch.cat([functional.linear(wide, weight, bias) for weight, bias in rows], dim=-1)


class Mixture(nn.Module):
    """Feed-forward networks of one shape, weighed per token by a router's scores. Expert 0 is the anchor's."""

    def __init__(self, experts: Sequence[nn.Module], router: Router, gate: Gate) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = router
        self.gate = gate

    def route(self, hidden: Tensor, routing: Routing) -> Tensor:
        """The gate weights of hidden (batch, seq, hidden): (batch * seq, experts)."""
        scores: Tensor | None = None
        if routing.by_rows:
            scores = self.router(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)
        weights: Tensor = self.gate(scores, routing)
        return weights.to(hidden.device)

    def forward(self, hidden: Tensor, routing: Routing | None = None) -> Tensor:
        """hidden (batch, seq, hidden) -> (batch, seq, hidden); without `routing`, all experts take part."""
        weights = self.route(hidden, routing or Routing())  # (tokens, experts)
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
