"""A few rows at a time: the values and the gradients of all at once, and nothing kept in between."""

import pytest
import torch
from torch import Tensor, nn

from motet.moe import lowrank_mixture
from motet.moe.in_pieces import in_pieces
from motet.moe.lowrank_mixture import mix_lowrank
from motet.moe.lowrank_mlp import LowRankMLP


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_values_and_gradients_are_those_of_all_at_once(size: int) -> None:
    left, right, matrix = drawn(7, 4), drawn(7, 4, seed=1).requires_grad_(), drawn(4, 2, seed=2).requires_grad_()
    idle = drawn(3, seed=3).requires_grad_()

    def function(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return (one * other.sin()) @ matrix, other.exp()

    def gradients(made: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(made[0].square().sum() + made[1].sum(), [right, matrix]))

    whole = list(function(left, right))
    pieces = in_pieces(function, (left, right), (matrix, idle), size=size)
    assert all(torch.equal(one, other) for one, other in zip(whole, pieces, strict=True))
    for one, other in zip(gradients(whole), gradients(pieces), strict=True):
        assert torch.allclose(one, other, rtol=1e-12)
    assert left.grad is None
    assert idle.grad is None


def test_only_what_needs_a_gradient_is_given_one() -> None:
    rows, factor = drawn(5, 2), drawn(2).requires_grad_()
    (made,) = in_pieces(lambda each: (each * factor,), (rows,), (factor,), size=2)
    made.sum().backward()
    assert torch.allclose(factor.grad, rows.sum(dim=0))


@pytest.mark.parametrize("half", [False, True])
def test_a_layer_of_low_rank_experts_learns_the_same_in_pieces(monkeypatch, half: bool) -> None:
    from types import SimpleNamespace

    torch.manual_seed(0)
    anchor = SimpleNamespace(
        gate_proj=nn.Linear(8, 12, bias=False).requires_grad_(False),
        up_proj=nn.Linear(8, 12, bias=False).requires_grad_(False),
        down_proj=nn.Linear(12, 8, bias=False).requires_grad_(False),
        act_fn=nn.SiLU(),
    )
    experts = {1: LowRankMLP(8, 12, 2), 3: LowRankMLP(8, 12, 4)}
    tokens, weights = drawn(20, 8).float().requires_grad_(), drawn(20, 4, seed=1).float().softmax(-1)
    weights[3:9, 1] = 0.0  # for these tokens an expert is off
    weights.requires_grad_()

    def learnt(size: int) -> list[Tensor]:
        monkeypatch.setattr(lowrank_mixture, "LEARNT_AT_A_TIME", size)
        leaves = [tokens, weights, *(each for expert in experts.values() for each in expert.parameters())]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            mixed = mix_lowrank(anchor, experts, tokens, weights)
        return [mixed, *torch.autograd.grad(mixed.float().square().sum(), leaves)]

    for whole, pieces in zip(learnt(100), learnt(6), strict=True):
        assert torch.allclose(whole, pieces, rtol=1e-5 if not half else 5e-2, atol=1e-6 if not half else 5e-2)
