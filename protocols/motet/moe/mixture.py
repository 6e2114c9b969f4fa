"""A mixture of feed-forward networks in place of one, weighed by a gate.

Guarantees: an expert that is masked out is never executed, and what remains is computed as if it did not exist. To
that end every score is computed on its own, and every sum runs in the order of expert ids: first the anchor and its
low-rank experts, which share the anchor's products (`motet.moe.lowrank_mixture`), then the full ones.

    output = Mixture(experts, router, Gate(top_k=None, normalise=True))(hidden, Routing(expert_mask=mask))
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from motet.moe.gate import Gate, Routing
from motet.moe.lowrank_mixture import mix_lowrank
from motet.moe.lowrank_mlp import AnchorMLP, LowRankMLP
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
    """Feed-forward networks of one shape, weighed per token by a router's scores.

    Expert 0 is the anchor's; the others are modules like it, or `LowRankMLP`, a change of it.
    """

    def __init__(self, experts: Sequence[nn.Module], router: Router, gate: Gate) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = router
        self.gate = gate
        self._lowrank = [number for number, expert in enumerate(experts) if isinstance(expert, LowRankMLP)]

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
        columns = list(weights.unbind(dim=-1))
        if self._lowrank:
            changed = (weights[:, self._lowrank] != 0).any(dim=-1)  # tokens that have the anchor's part from there
            mixed = self._mix_lowrank(mixed, changed.nonzero().squeeze(-1), tokens, weights)
            columns[0] = columns[0].masked_fill(changed, 0.0)
        for number, (expert, column) in enumerate(zip(self.experts, columns, strict=True)):
            if number in self._lowrank:
                continue
            taking_part = column.nonzero().squeeze(-1)
            if not len(taking_part):
                continue
            if len(taking_part) == len(tokens):
                mixed = mixed + column.unsqueeze(-1) * expert(tokens)
            else:
                part = column[taking_part].unsqueeze(-1) * expert(tokens.index_select(0, taking_part))
                mixed = mixed.index_add(0, taking_part, part)
        return mixed.to(hidden.dtype).reshape(hidden.shape)

    def _mix_lowrank(self, mixed: Tensor, rows: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        """Adds what the anchor and its low-rank experts put out for the tokens at `rows`."""
        anchor = cast("AnchorMLP", self.experts[0])
        experts = {number: cast("LowRankMLP", self.experts[number]) for number in self._lowrank}
        if len(rows) == len(tokens):
            return mixed + mix_lowrank(anchor, experts, tokens, weights)
        if not len(rows):
            return mixed
        return mixed.index_add(0, rows, mix_lowrank(anchor, experts, tokens.index_select(0, rows), weights[rows]))
