"""Both ways to sum low-rank experts give what the way for gradients gives, whoever has which expert."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from motet.moe.lowrank_mixture import mix_lowrank
from motet.moe.lowrank_mlp import LowRankMLP
from motet.moe.lowrank_sums import LONG, PAIRS_BYTES, Shares, Sums, _places, in_pairs, in_turn

HIDDEN, INTERMEDIATE = 8, 12


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_layer(dtype: torch.dtype = torch.float32) -> tuple[SimpleNamespace, dict[int, LowRankMLP]]:
    torch.manual_seed(0)
    anchor = SimpleNamespace(
        gate_proj=nn.Linear(HIDDEN, INTERMEDIATE, bias=False).to(dtype),
        up_proj=nn.Linear(HIDDEN, INTERMEDIATE, bias=False).to(dtype),
        down_proj=nn.Linear(INTERMEDIATE, HIDDEN, bias=False).to(dtype),
        act_fn=nn.SiLU(),
    )
    return anchor, {number: LowRankMLP(HIDDEN, INTERMEDIATE, 1 + number).to(dtype) for number in (1, 2, 4)}


PATTERNS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "everybody has all": lambda token: (1, 2, 4),
    "some are off for all": lambda token: (2,),
    "stretches": lambda token: (1, 2) if token < 20 else (2, 4),
    "each its own": lambda token: (1, 2, 4)[: token % 4],
    "stretches and single ones": lambda token: (1, 2) if token < 20 else (token % 5,),
    "nobody": lambda token: (),
}


def shared_out(pattern: str, tokens: int) -> Tensor:
    """Weights (tokens, experts) of anchor, three low-rank experts, and a full one at 3."""
    allowed = torch.zeros(tokens, 5)
    for token in range(tokens):
        for number in (0, 3, *PATTERNS[pattern](token)):
            allowed[token, number] = 1.0
    weights = drawn(tokens, 5, seed=1).exp() * allowed
    return weights / weights.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("summed", [in_turn, in_pairs])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_sums_are_those_that_are_learnt_with(pattern: str, summed, dtype: torch.dtype) -> None:
    anchor, experts = a_layer(dtype)
    tokens, weights = drawn(40, HIDDEN).to(dtype), shared_out(pattern, 40)
    expected = mix_lowrank(anchor, experts, tokens, weights).detach()  # with gradients
    with torch.no_grad():
        gate, up = anchor.gate_proj(tokens), anchor.up_proj(tokens)
        before = [each.clone() for each in (tokens, gate, up)]
        sums = Sums(weights[:, :1] * (anchor.act_fn(gate) * up), torch.zeros(40, HIDDEN))
        summed(anchor.act_fn, experts.values(), (tokens, gate, up), Shares.of(weights, experts), sums)
        found = anchor.down_proj(sums.inner.to(dtype)) + sums.outer
    assert all(torch.equal(one, other) for one, other in zip(before, (tokens, gate, up), strict=True))
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("tokens", [6, 40])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_token_is_given_the_same_whatever_an_expert_does_that_it_has_not(pattern: str, tokens: int) -> None:
    anchor, experts = a_layer()
    inputs, weights = drawn(tokens, HIDDEN), shared_out(pattern, tokens)
    with torch.no_grad():
        before = mix_lowrank(anchor, experts, inputs, weights)
        for parameter in experts[1].parameters():
            parameter.fill_(torch.nan)
        after = mix_lowrank(anchor, experts, inputs, weights)
    has = weights[:, 1] != 0
    assert torch.equal(after[~has], before[~has])
    assert after[has].isnan().all()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3 * LONG)), max_size=8))
def test_places_are_every_token_once_and_long_stretches_are_not_copied(runs: list[tuple[bool, int]]) -> None:
    column = np.array([taking_part for taking_part, length in runs for _ in range(length)], dtype=bool)
    places = _places(column)
    covered = np.zeros(len(column), dtype=int)
    for place in places:
        covered[place if isinstance(place, slice) else place.numpy()] += 1
    assert (covered == column).all()
    assert all(place.stop - place.start >= LONG for place in places if isinstance(place, slice))
    rows = [place for place in places if not isinstance(place, slice)]
    assert len(rows) <= 1
    joined = "".join("x" if each else " " for each in column).split()
    assert sum(map(len, rows)) == sum(len(run) for run in joined if len(run) < LONG)


def test_pairs_are_for_few_tokens_that_differ() -> None:
    few, many = shared_out("each its own", 8), shared_out("each its own", 4096)
    assert Shares.of(few, (1, 2, 4)).fit_in_pairs(torch.zeros(8, INTERMEDIATE))
    assert not Shares.of(shared_out("everybody has all", 8), (1, 2, 4)).fit_in_pairs(torch.zeros(8, INTERMEDIATE))
    assert not Shares.of(shared_out("some are off for all", 8), (1, 2, 4)).fit_in_pairs(torch.zeros(8, INTERMEDIATE))
    shares = Shares.of(many, (1, 2, 4))
    assert sum(shares.counts) * 4 * 1024 > PAIRS_BYTES
    assert not shares.fit_in_pairs(torch.zeros(4096, 1024))
