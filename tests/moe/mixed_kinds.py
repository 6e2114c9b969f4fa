"""Composites of full and low-rank experts, small and random, and the same with every expert expanded."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from motet.moe import Expert, Factors, LowRankExpert, MotetForCausalLM, RoutingRows, compose
from motet.moe.lowrank import AnyExpert, dense_ffn

from .conftest import tiny_anchor, tiny_expert

RANKS = {"art": 3, "law": None, "math": 4, "news": None, "verse": 2}
"""By digest, low-rank and full in turn; the contributions are named in this order."""
MIXED = tuple(RANKS)


def ffn_of(anchor: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in anchor.named_parameters() if ".mlp." in name}


def expert_of(anchor: torch.nn.Module, name: str) -> AnyExpert:
    number, rank = MIXED.index(name), RANKS[name]
    contribution = f"sha256:{number}{'0' * 63}"
    if rank is None:
        return replace(tiny_expert(anchor, name), contribution=contribution)
    draw = torch.Generator().manual_seed(number + 11)
    factors = {
        key: Factors(
            a=torch.randn(rank, own.shape[1], generator=draw).to(own) * 0.5,
            b=torch.randn(own.shape[0], rank, generator=draw).to(own) * 0.5,
        )
        for key, own in ffn_of(anchor).items()
    }
    layers, hidden = anchor.config.num_hidden_layers, anchor.config.hidden_size
    rows = RoutingRows(weight=torch.randn(layers, hidden, generator=draw) / 4, bias=torch.randn(layers, generator=draw))
    return LowRankExpert(name=name, contribution=contribution, factors=factors, rows=rows)


def mixed(
    names: Sequence[str] = MIXED, dtype: torch.dtype = torch.float32, *, top_k: int | None = None, **changes: object
) -> MotetForCausalLM:
    anchor = tiny_anchor(**changes).to(dtype)
    return compose(anchor, [expert_of(anchor, name) for name in names], top_k=top_k, log_priors={"anchor": 0.5})


def expanded(names: Sequence[str] = MIXED, dtype: torch.dtype = torch.float32, **how: object) -> MotetForCausalLM:
    """The same composite of dense networks."""
    anchor = tiny_anchor().to(dtype)
    experts = [expert_of(anchor, name) for name in names]
    full = [
        Expert(name=each.name, contribution=each.contribution, ffn=dense_ffn(each, ffn_of(anchor)), rows=each.rows)
        for each in experts
    ]
    return compose(anchor, full, log_priors={"anchor": 0.5}, **how)
