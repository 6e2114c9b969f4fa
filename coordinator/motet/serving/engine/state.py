"""What one sequence remembers: keys and values of every layer, and what its tokens told the router.

Guarantees: a state belongs to one expert set for ever, named by the set's digest; copies share nothing. A state is a
sequence's own: nothing of it moves when sequences enter or leave the batch, and there is no padding in it.

    state = State(Shape.of(model), expert_set=chosen.digest)
    state.reserve(5)
    keys, values = state.extend(layer, new_keys, new_values)      # of five tokens, layer by layer
    state.advance(5, told)
    other = state.prefix(3)
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from motet.moe import MotetForCausalLM
from motet.moe.average import Average

LEAST = 32
"""Positions that a state starts with; it doubles when they are used up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What states of one model measure; `told` is how many values its router keeps per position."""

    layers: int
    heads: int
    head_dim: int
    told: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: MotetForCausalLM) -> Self:
        """The shape for a composite."""
        anchor, config = model.config.anchor, model.config
        head_dim = getattr(anchor, "head_dim", None) or anchor.hidden_size // anchor.num_attention_heads
        told = 0 if config.prefix is None else config.num_experts + isinstance(config.prefix, Average)
        return cls(
            layers=config.num_hidden_layers,
            heads=anchor.num_key_value_heads,
            head_dim=head_dim,
            told=told,
            dtype=model.dtype,
            device=model.device,
        )


class State:
    """Keys and values, (layers, 2, heads, positions, head_dim), of which the first `length` positions are filled."""

    def __init__(self, shape: Shape, *, expert_set: str) -> None:
        self.shape, self.expert_set, self.length = shape, expert_set, 0
        self._kept = self._empty(0)
        self._told = torch.zeros(0, shape.told)

    @property
    def room(self) -> int:
        """Positions that there is memory for."""
        return self._kept.shape[3]

    def reserve(self, more: int) -> None:
        """Makes room for `more` positions."""
        if self.length + more <= self.room:
            return
        kept = self._empty(max(LEAST, self.length + more, 2 * self.room))
        kept[:, :, :, : self.length] = self._kept[:, :, :, : self.length]
        self._kept = kept

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Puts a layer's new keys and values (heads, new, head_dim) behind the old; returns all of that layer's."""
        end = self.length + keys.shape[1]
        own = self._kept[layer]
        own[0, :, self.length : end] = keys
        own[1, :, self.length : end] = values
        return own[0, :, :end], own[1, :, :end]

    def advance(self, new: int, told: Tensor | None) -> None:
        """The `new` positions are filled in all layers; `told` (new, experts or one more) is what their tokens told."""
        self.length += new
        if told is not None:
            self._told = torch.cat([self._told, told.to(self._told)])

    def last_told(self) -> Tensor:
        """What stands at the last position; zeros in front of a text."""
        return self._told[-1] if len(self._told) else torch.zeros(self.shape.told)

    def prefix(self, length: int) -> "State":
        """A copy of the first `length` positions."""
        copy = State(self.shape, expert_set=self.expert_set)
        copy.reserve(length)
        copy._kept[:, :, :, :length] = self._kept[:, :, :, :length]
        copy._told, copy.length = self._told[:length].clone(), length
        return copy

    def _empty(self, positions: int) -> Tensor:
        size = (self.shape.layers, 2, self.shape.heads, positions, self.shape.head_dim)
        return torch.empty(size, dtype=self.shape.dtype, device=self.shape.device)
