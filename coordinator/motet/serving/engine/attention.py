"""Attention of several sequences in one pass, each over its own state alone.

A pass holds the new tokens of all its sequences one below the other, (tokens, 1, hidden), so that everything but
attention, the experts' masks included, is a matter of one token. Here the tokens of a sequence come together again.

Guarantees: what a sequence is given does not depend on what else is in the pass, and no position is padding.

    with attending(model):                      # the composite's attention understands passes, until the end
        model.model(input_ids=tokens, position_ids=positions, parts=[Part(state, first=0, count=5)], use_cache=False)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from motet.moe import MotetForCausalLM
from motet.serving.engine.state import State

NAME = "motet_parts"


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's tokens in a pass: `count` from `first` on."""

    state: State
    first: int
    count: int


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    parts: Sequence[Part],
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,  # noqa: ANN401 - what other implementations need
) -> tuple[Tensor, None]:
    """query (tokens, heads, 1, dim), key and value (tokens, key heads, 1, dim) -> (tokens, 1, heads, dim)."""
    attended = []
    for part in parts:
        own = slice(part.first, part.first + part.count)
        keys, values = part.state.extend(
            int(module.layer_idx),  # type: ignore[arg-type]
            key[own, :, 0].transpose(0, 1),
            value[own, :, 0].transpose(0, 1),
        )
        if part.count == 1:
            attended.append(_one(query[own], keys, values, scaling, sliding_window))
        else:
            attended.append(_several(query[own, :, 0], keys, values, scaling, sliding_window))
    return torch.cat(attended), None


def _one(query: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int | None) -> Tensor:
    """One token: query (1, heads, 1, dim) over keys (key heads, positions, dim) -> (1, 1, heads, dim)."""
    _, heads, _, dim = query.shape
    if window is not None:
        keys, values = keys[:, -window:], values[:, -window:]
    # The query heads that share keys stand where other tokens would, so that no key is copied.
    grouped = query.reshape(1, len(keys), heads // len(keys), dim)
    found = functional.scaled_dot_product_attention(grouped, keys[None], values[None], scale=scaling)
    return found.reshape(1, 1, heads, dim)


def _several(query: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int | None) -> Tensor:
    """A stretch of tokens, the last of all: query (new, heads, dim) -> (new, 1, heads, dim)."""
    new, heads, _ = query.shape
    groups = heads // len(keys)
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, dim=0), values.repeat_interleave(groups, dim=0)
    at_start = keys.shape[1] == new and (window is None or window >= new)
    mask = None if at_start else _visible(new, keys.shape[1], window, query.device)
    found = functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, is_causal=at_start, scale=scaling
    )  # (1, heads, new, dim)
    return found[0].transpose(0, 1).unsqueeze(1)


def _visible(new: int, positions: int, window: int | None, device: torch.device) -> Tensor:
    """Which of `positions` each of the last `new` may see: (new, positions) bool."""
    here = torch.arange(positions - new, positions, device=device)[:, None]
    there = torch.arange(positions, device=device)[None]
    seen = there <= here
    return seen if window is None else seen & (there > here - window)


@contextmanager
def attending(model: MotetForCausalLM) -> Iterator[None]:
    """Lets the composite's attention understand passes, and nothing else, until the end of the block."""
    anchor = model.config.anchor
    before = anchor._attn_implementation
    AttentionInterface.register(NAME, attend)
    anchor._attn_implementation = NAME
    try:
        yield
    finally:
        anchor._attn_implementation = before
