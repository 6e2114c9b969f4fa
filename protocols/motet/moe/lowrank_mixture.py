"""Low-rank experts in a layer: what they share with the anchor's feed-forward network is computed once for all.

An expert's gate and up products are the anchor's plus B (A x); and as the down projection is linear, the anchor's
matrix is applied once to the weighted sum of all activations, beside each expert's own B (A h). Eight experts thus cost
one dense network, their activations and products of their rank; no dense copy of an expert is ever made.

    experts = {1: LowRankMLP(hidden_size, intermediate_size, rank=16)}
    mixed = mix_lowrank(anchor_mlp, experts, tokens, weights)         # (tokens, hidden), in the dtype of `weights`
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from motet.moe.in_pieces import in_pieces
from motet.moe.lowrank_mlp import Activation, AnchorMLP, LowRankMLP
from motet.moe.lowrank_sums import Parts, Shares, Sums, in_pairs, in_turn

AT_A_TIME = 128
"""Tokens whose activations, of a few thousand values each, a processor's cache holds several of."""

LEARNT_AT_A_TIME = 128
"""The same with gradients, where every piece costs the way through autograd as well."""


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
    parts = tokens, gate, up
    sums = Sums(weights[:, :1] * (activation(gate) * up), tokens.new_zeros(tokens.shape, dtype=weights.dtype))
    if torch.is_grad_enabled():
        return _learning(activation, experts, parts, weights, sums)
    shares = Shares.of(weights, experts)
    summed = in_pairs if shares.fit_in_pairs(gate) else in_turn
    return summed(activation, experts.values(), parts, shares, sums)


def _learning(
    activation: Activation,
    experts: Mapping[int, LowRankMLP],
    parts: Parts,
    weights: Tensor,
    sums: Sums,
) -> Sums:
    """Expert by expert, for autograd: nothing is changed in place, and nothing copied for one that all tokens have."""
    inner, outer = sums
    for number, expert in experts.items():
        column = weights[:, number]
        rows = None if bool(column.all()) else column.nonzero().squeeze(-1)
        if rows is not None and not len(rows):
            continue
        *seen, weight = (
            part if rows is None else part.index_select(0, rows) for part in (*parts, column.unsqueeze(-1))
        )
        active = expert(*seen, activation)
        inner = _added(inner, weight * active, rows)
        outer = _added(outer, weight * expert.down_proj(active), rows)
    return Sums(inner, outer)


def _added(total: Tensor, part: Tensor, rows: Tensor | None) -> Tensor:
    return total + part if rows is None else total.index_add(0, rows, part)
