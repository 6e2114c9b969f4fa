"""Low-rank experts in a layer: what they share with the anchor's feed-forward network is computed once for all.

An expert's matrices are W + scale B A, so its gate and up products are the anchor's plus B (A x); and as the down
projection is linear, the anchor's matrix is applied once to the weighted sum of all activations, beside each expert's
own B (A h). Eight experts thus cost one dense network, their activations and products of their rank; no dense copy of
an expert is ever made.

    experts = {1: LowRankMLP(hidden_size, intermediate_size, rank=16)}
    mixed = mix_lowrank(anchor_mlp, experts, tokens, weights)         # (tokens, hidden), in the dtype of `weights`
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from motet.moe.in_pieces import in_pieces

AT_A_TIME = 128
"""Tokens whose activations, of a few thousand values each, a processor's cache holds several of."""

FEW = 32
"""Tokens that are so few that every call counts, as where one is generated for each of some sequences."""

LEARNT_AT_A_TIME = 128
"""The same with gradients, where every piece costs the way through autograd as well."""

Activation = Callable[[Tensor], Tensor]


class AnchorMLP(Protocol):
    """The feed-forward network that every family of anchors has: down(act(gate(x)) * up(x))."""

    gate_proj: Activation
    up_proj: Activation
    down_proj: Activation
    act_fn: Activation


class _Raised(nn.Linear):
    """B: adds its product to what is there in one pass."""

    def forward(self, lowered: Tensor, base: Tensor | None = None) -> Tensor:
        """lowered (tokens, rank), base (tokens, out) -> (tokens, out)."""
        return super().forward(lowered) if base is None else torch.addmm(base, lowered, self.weight.t())


class LowRank(nn.Module):
    """One matrix's change: `lora_A.weight` (rank, in), `lora_B.weight` (out, rank), and the scale of their product.

    The scale is no tensor: files hold factors that it is folded into.
    """

    def __init__(self, into: int, out: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Linear(into, rank, bias=False)
        self.lora_B = _Raised(rank, out, bias=False)
        self.scale = 1.0

    def forward(self, inputs: Tensor, base: Tensor | None = None) -> Tensor:
        """inputs (tokens, in) -> scale B A inputs, added to `base` (tokens, out) if it is given."""
        lowered: Tensor = self.lora_A(inputs)  # (tokens, rank)
        changed: Tensor = self.lora_B(lowered if self.scale == 1.0 else lowered * self.scale, base)
        return changed

    def add_to(self, base: Tensor, inputs: Tensor) -> None:
        """Adds scale B A inputs to `base` (tokens, out) in place, without the modules' calls; not for gradients."""
        lowered = functional.linear(inputs, self.lora_A.weight)
        base.addmm_(lowered.to(base), self.lora_B.weight.t().to(base), alpha=self.scale)


class LowRankMLP(nn.Module):
    """A low-rank expert's three changes. It computes nothing alone: see `mix_lowrank`."""

    def __init__(self, hidden_size: int, intermediate_size: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.gate_proj = LowRank(hidden_size, intermediate_size, rank)
        self.up_proj = LowRank(hidden_size, intermediate_size, rank)
        self.down_proj = LowRank(intermediate_size, hidden_size, rank)

    def forward(self, tokens: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """The expert's activations (tokens, intermediate), from the anchor's gate and up products of the same shape."""
        raised: Tensor = self.up_proj(tokens, up)
        return activation(self.gate_proj(tokens, gate)) * raised

    def change_(self, tokens: Tensor, gate: Tensor, up: Tensor) -> None:
        """Adds the expert's change to the anchor's gate and up products (tokens, intermediate), in place."""
        self.gate_proj.add_to(gate, tokens)
        self.up_proj.add_to(up, tokens)


def mix_lowrank(anchor: AnchorMLP, experts: Mapping[int, LowRankMLP], tokens: Tensor, weights: Tensor) -> Tensor:
    """What the anchor and its low-rank experts put out, weighed and summed: (tokens, hidden), dtype of `weights`.

    An expert is executed for the tokens that give it a weight, and what a token is given does not depend on experts
    whose weight is zero. A processor is given a few tokens at a time: their activations stay in its cache, where most
    of the work on them is.

    Args:
        anchor: the anchor's MLP.
        experts: by expert id, ascending; the anchor's id is 0.
        tokens: (tokens, hidden).
        weights: (tokens, experts), of all experts of the layer.
    """
    learning = torch.is_grad_enabled()
    if tokens.device.type != "cpu" or len(tokens) <= (LEARNT_AT_A_TIME if learning else AT_A_TIME):
        return _mix(anchor, experts, tokens, weights)
    if learning:
        return _mix_learning(anchor, experts, tokens, weights)
    parts = zip(torch.split(tokens, AT_A_TIME), torch.split(weights, AT_A_TIME), strict=True)
    return torch.cat([_mix(anchor, experts, *part) for part in parts])


def _mix(anchor: AnchorMLP, experts: Mapping[int, LowRankMLP], tokens: Tensor, weights: Tensor) -> Tensor:
    gate, up = anchor.gate_proj(tokens), anchor.up_proj(tokens)  # (tokens, intermediate)
    inner, outer = _activated(anchor.act_fn, experts, tokens, gate, up, weights)
    return anchor.down_proj(inner.to(gate.dtype)) + outer


def _mix_learning(anchor: AnchorMLP, experts: Mapping[int, LowRankMLP], tokens: Tensor, weights: Tensor) -> Tensor:
    """The same with gradients: the anchor's products are made at once, and only what lies between them in pieces."""
    gate, up = anchor.gate_proj(tokens), anchor.up_proj(tokens)
    parameters = [each for expert in experts.values() for each in expert.parameters()]
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def activated(*rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", enabled=autocast[0], dtype=autocast[1], cache_enabled=False):
            return _activated(anchor.act_fn, experts, *rows)

    inner, outer = in_pieces(activated, (tokens, gate, up, weights), parameters, size=LEARNT_AT_A_TIME)
    return anchor.down_proj(inner.to(gate.dtype)) + outer


def _activated(
    activation: Activation,
    experts: Mapping[int, LowRankMLP],
    tokens: Tensor,
    gate: Tensor,
    up: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """The weighed sum of all activations (tokens, intermediate), and that of the experts' own changes (tokens, hidden).

    Both are in the dtype of `weights`.
    """
    counts = dict(enumerate((weights != 0).sum(dim=0).tolist()))
    taking_part = {number: expert for number, expert in experts.items() if counts[number]}
    shared = all(counts[number] == len(tokens) for number in taking_part)
    few = tokens.device.type == "cpu" and len(tokens) <= FEW
    summed = _in_pairs if few and not shared and not torch.is_grad_enabled() else _in_turn
    inner = weights[:, :1] * (activation(gate) * up)
    outer = tokens.new_zeros(tokens.shape, dtype=weights.dtype)
    return summed(activation, taking_part, (tokens, gate, up), weights, inner, outer)


Parts = tuple[Tensor, Tensor, Tensor]
"""Of the same tokens: (tokens, hidden), and the anchor's gate and up products (tokens, intermediate)."""


def _in_turn(
    activation: Activation,
    experts: Mapping[int, LowRankMLP],
    parts: Parts,
    weights: Tensor,
    inner: Tensor,
    outer: Tensor,
) -> tuple[Tensor, Tensor]:
    """Expert by expert: nothing is copied for one that all tokens have."""
    for number, expert in experts.items():
        column = weights[:, number]
        rows = None if bool(column.all()) else column.nonzero().squeeze(-1)
        *seen, weight = (part if rows is None else part[rows] for part in (*parts, column.unsqueeze(-1)))
        active = expert(*seen, activation)
        inner = _added(inner, weight * active, rows)
        outer = _added(outer, weight * expert.down_proj(active), rows)
    return inner, outer


def _in_pairs(
    activation: Activation,
    experts: Mapping[int, LowRankMLP],
    parts: Parts,
    weights: Tensor,
    inner: Tensor,
    outer: Tensor,
) -> tuple[Tensor, Tensor]:
    """All pairs of an expert and a token that has it at once, below each other by expert: where tokens differ in their
    experts, what is copied is copied in few strokes. No gradients; `inner` and `outer` are changed.
    """
    shares = weights[:, list(experts)].t()  # (experts, tokens)
    taking_part = shares != 0
    rows, counts = taking_part.nonzero()[:, 1], taking_part.sum(dim=1).tolist()
    seen, gate, up = (part[rows] for part in parts)  # (pairs, ...)
    for expert, *own in zip(experts.values(), *(torch.split(copy, counts) for copy in (seen, gate, up)), strict=True):
        expert.change_(*own)
    active = activation(gate).mul_(up)
    changes = torch.zeros_like(seen)
    for expert, *own in zip(experts.values(), *(torch.split(each, counts) for each in (changes, active)), strict=True):
        expert.down_proj.add_to(*own)
    weight = shares[taking_part].unsqueeze(-1)
    return inner.index_add_(0, rows, weight * active), outer.index_add_(0, rows, weight * changes)


def _added(total: Tensor, part: Tensor, rows: Tensor | None) -> Tensor:
    return total + part if rows is None else total.index_add(0, rows, part)
