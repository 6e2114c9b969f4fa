"""The sums over a layer's low-rank experts without gradients, made in place; each expert runs for the tokens it has.

Where tokens differ in their experts, an expert's tokens are copied together, which costs a processor as much as its
products do. Two ways around that: tokens that stand together, as those of a prompt, are a slice and need no copy of
their own (`in_turn`); and a few tokens are copied once for all experts (`in_pairs`), since with few every call counts.

    shares = Shares.of(weights, experts)
    summed = in_pairs if shares.fit_in_pairs(gate) else in_turn
    sums = summed(activation, experts.values(), (tokens, gate, up), shares, Sums(inner, outer))
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from motet.moe.lowrank_mlp import Activation, LowRankMLP

LONG = 16
"""Tokens that stand together from which on calls of their own cost less than copies."""

PAIRS_BYTES = 2**20
"""Activations of all pairs of an expert and a token that still lie in a processor's cache."""

Parts = tuple[Tensor, Tensor, Tensor]
"""Of the same tokens: (tokens, hidden), and the anchor's gate and up products (tokens, intermediate)."""

Place = slice | Tensor
"""Some of the tokens: a stretch of them, or their rows."""


class Sums(NamedTuple):
    """Weighed sums: `inner` of activations (tokens, intermediate), `outer` of changes (tokens, hidden)."""

    inner: Tensor
    outer: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """What tokens give to low-rank experts.

    weights: (experts, tokens).
    taking_part: (experts, tokens) bool, where a weight is not zero; on the processor.
    counts: tokens of every expert.
    """

    weights: Tensor
    taking_part: Tensor
    counts: list[int]

    @classmethod
    def of(cls, weights: Tensor, experts: Collection[int]) -> Self:
        """Of the columns of (tokens, all experts) that are those of `experts`."""
        own = weights[:, list(experts)].t()
        taking_part = (own != 0).cpu()
        return cls(own, taking_part, taking_part.sum(dim=1).tolist())

    def fit_in_pairs(self, gate: Tensor) -> bool:
        """Whether `in_pairs` is the faster: on a processor, for few pairs of tokens that differ in their experts.

        `gate` (tokens, intermediate) is the anchor's product.
        """
        differing = any(0 < count < len(gate) for count in self.counts)
        return differing and gate.device.type == "cpu" and sum(self.counts) * gate[:1].nbytes <= PAIRS_BYTES


def in_turn(activation: Activation, experts: Iterable[LowRankMLP], parts: Parts, shares: Shares, sums: Sums) -> Sums:
    """Adds expert by expert to `sums`, in place; `parts` stay as they are."""
    columns = shares.taking_part.numpy()
    for expert, weight, column, count in zip(
        experts, shares.weights.unsqueeze(-1), columns, shares.counts, strict=True
    ):
        if count == len(column):
            _add(activation, expert, parts, weight, sums)
            continue
        for place in _places(column) if count else ():
            if isinstance(place, slice):
                stretch = Sums(sums.inner[place], sums.outer[place])
                _add(activation, expert, _at(parts, place), weight[place], stretch)
            else:
                rows = place.to(weight.device)
                _add_rows(activation, expert, _at(parts, rows), weight[rows], sums, rows)
    return sums


def in_pairs(activation: Activation, experts: Iterable[LowRankMLP], parts: Parts, shares: Shares, sums: Sums) -> Sums:
    """Adds all pairs of an expert and a token that has it at once, below each other by expert. See `in_turn`."""
    rows = shares.taking_part.nonzero()[:, 1]
    seen, gate, up = _at(parts, rows)  # (pairs, ...)
    present = [(expert, count) for expert, count in zip(experts, shares.counts, strict=True) if count]
    counts = [count for _, count in present]
    for (expert, _), *own in zip(present, *(torch.split(copy, counts) for copy in (seen, gate, up)), strict=True):
        expert.change_(*own)
    active = activation(gate).mul_(up)
    changes = torch.zeros_like(seen)
    for (expert, _), *own in zip(present, *(torch.split(each, counts) for each in (changes, active)), strict=True):
        expert.down_proj.add_to(*own)
    weight = shares.weights[shares.taking_part].unsqueeze(-1)
    sums.inner.index_add_(0, rows, active * weight)
    sums.outer.index_add_(0, rows, changes * weight)
    return sums


def _add(activation: Activation, expert: LowRankMLP, parts: Parts, weight: Tensor, sums: Sums) -> None:
    """One expert for tokens that are all there are in `sums`."""
    tokens, gate, up = parts
    active = expert(tokens, gate, up, activation)
    sums.outer.addcmul_(expert.down_proj(active), weight)
    sums.inner.addcmul_(active, weight)


def _add_rows(
    activation: Activation, expert: LowRankMLP, parts: Parts, weight: Tensor, sums: Sums, rows: Tensor
) -> None:
    """One expert for tokens that are these rows of `sums`; `parts`, which are copies, are changed."""
    tokens, gate, up = parts
    expert.change_(tokens, gate, up)
    active = activation(gate).mul_(up)
    sums.outer.index_add_(0, rows, expert.down_proj(active) * weight)
    sums.inner.index_add_(0, rows, active * weight)


def _at(parts: Parts, place: Place) -> Parts:
    """Views of a stretch, or copies of rows; `index_select` copies whole rows, six times faster than an index does."""
    tokens, gate, up = (part[place] if isinstance(place, slice) else part.index_select(0, place) for part in parts)
    return tokens, gate, up


def _places(column: NDArray[np.bool_]) -> list[Place]:
    """Where `column` (tokens) is true: each long run as a stretch, the others together as rows."""
    edges = np.flatnonzero(np.diff(column, prepend=False, append=False)).reshape(-1, 2)  # begins and ends of the runs
    places: list[Place] = [slice(begin, end) for begin, end in edges.tolist() if end - begin >= LONG]
    scattered = column.copy()
    for place in places:
        scattered[place] = False
    rows = np.flatnonzero(scattered)
    return [*places, torch.from_numpy(rows)] if len(rows) else places
