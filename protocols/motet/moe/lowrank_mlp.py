"""A low-rank expert's change of a layer's feed-forward network, and nothing that computes it alone.

An expert's matrices are W + scale B A: its products are those of the anchor's W, which all experts share, plus
B (A x). Layers of them are computed by `motet.moe.lowrank_mixture`.

    expert = LowRankMLP(hidden_size, intermediate_size, rank=16)
    expert.change_(tokens, gate, up)                 # copies of the anchor's products become the expert's
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

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
