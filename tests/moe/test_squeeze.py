"""Decompositions keep what they say, whichever way they are made."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from motet.moe.anchor import Anchor
from motet.moe.lowrank import Factors
from motet.moe.squeeze import changes, decompose, is_randomised, largest_rank
from motet.protocols.errors import ExpertError


def of_rank(rank: int, out: int, into: int, *, noise: float = 0.0, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    product = torch.randn(out, rank, generator=draw) @ torch.randn(rank, into, generator=draw)
    return product + noise * torch.randn(out, into, generator=draw)


def kept(change: Tensor, factors: Factors) -> float:
    """The share of the squared norm that is left, from the definition."""
    lost = (change - factors.b @ factors.a).double().square().sum()
    return 1 - float(lost / change.double().square().sum())


def test_the_energy_told_is_the_energy_kept_and_no_rank_keeps_more() -> None:
    parts = {"one": of_rank(40, 48, 40), "two": 3 * of_rank(40, 40, 56, seed=1)}
    found, whole = decompose(parts.items(), rank=24), sum(float(each.square().sum()) for each in parts.values())
    for rank in (1, 7, 24):
        factors = found.factors(rank)
        told = sum(kept(parts[name], factors[name]) * float(parts[name].square().sum()) for name in parts) / whole
        assert found.energy(rank) == pytest.approx(told, abs=1e-5)
        for name, each in factors.items():
            assert (each.rank, each.scale) == (rank, 1.0)
            best = torch.linalg.svdvals(parts[name].double())[:rank].square().sum()
            assert kept(parts[name], each) == pytest.approx(float(best / parts[name].double().square().sum()), abs=1e-5)
            assert torch.allclose(each.a.norm(dim=1), each.b.norm(dim=0), rtol=1e-3)
    assert [found.energy(rank) for rank in range(1, 25)] == sorted(found.energy(rank) for rank in range(1, 25))


def test_a_change_of_low_rank_is_kept_whole_and_the_smallest_rank_is_chosen() -> None:
    change = of_rank(6, 64, 48)
    found = decompose([("w", change)], rank=12)
    each = found.factors(6)["w"]
    assert torch.allclose(each.b @ each.a, change, atol=1e-4)
    assert found.rank_keeping(0.99999) == 6
    for share in (0.3, 0.7, 0.9):
        rank = found.rank_keeping(share)
        assert found.energy(rank) >= share
        assert rank == 1 or found.energy(rank - 1) < share


def test_large_matrices_are_projected_at_random_and_lose_next_to_nothing() -> None:
    change = of_rank(12, 320, 256, noise=0.3)
    assert is_randomised((320, 256), 8)
    assert not is_randomised((320, 256), 64)
    state = torch.random.get_rng_state()
    found, again = (decompose([("w", change)], rank=8) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(found.matrices["w"].a, again.matrices["w"].a)
    best = torch.linalg.svdvals(change.double()).square()
    assert found.energy(8) == pytest.approx(float(best[:8].sum() / best.sum()), rel=1e-4)
    assert kept(change, found.factors(8)["w"]) == pytest.approx(found.energy(8), abs=1e-4)


def test_factors_are_cut_without_their_product() -> None:
    draw = torch.Generator().manual_seed(3)
    factors = Factors(a=torch.randn(10, 40, generator=draw), b=torch.randn(56, 10, generator=draw), scale=0.5)
    product = 0.5 * factors.b @ factors.a
    dense, cut = decompose([("w", product)], rank=4), decompose([("w", factors)], rank=4)
    assert cut.energy(4) == pytest.approx(dense.energy(4), rel=1e-5)
    one, other = dense.factors(4)["w"], cut.factors(4)["w"]
    assert torch.allclose(one.b @ one.a, other.b @ other.a, atol=1e-3)
    with pytest.raises(ExpertError, match="rank 11, wanted one from 1 to 10"):
        decompose([("w", factors)], rank=11)


@pytest.mark.parametrize(("out", "into"), [(12, 20), (20, 12), (6, 8)])
def test_factors_of_more_rank_than_their_product_can_have_are_cut(out: int, into: int) -> None:
    draw = torch.Generator().manual_seed(5)
    factors = Factors(a=torch.randn(16, into, generator=draw), b=torch.randn(out, 16, generator=draw))
    product, least = factors.b @ factors.a, min(out, into)
    found = decompose([("w", factors)], rank=least)
    whole = found.factors(least)["w"]
    assert torch.allclose(whole.b @ whole.a, product, atol=1e-3)
    assert found.energy(3) == pytest.approx(decompose([("w", product)], rank=3).energy(3), rel=1e-5)
    with pytest.raises(ExpertError, match=f"rank {least + 1}, wanted one from 1 to {least}"):
        decompose([("w", factors)], rank=least + 1)


def test_nothing_changed_is_nothing_lost() -> None:
    found = decompose([("w", torch.zeros(8, 6))], rank=3)
    assert found.energy(1) == 1.0
    assert not found.factors(2)["w"].b.any()


def test_what_cannot_be_decomposed_is_refused() -> None:
    with pytest.raises(ExpertError, match=r"w: saw NaN or infinity"):
        decompose([("w", torch.full((8, 6), torch.nan))], rank=2)
    with pytest.raises(ExpertError, match=r"w: saw NaN or infinity"):
        decompose([("w", Factors(a=torch.ones(2, 3), b=torch.full((4, 2), torch.inf)))], rank=1)
    with pytest.raises(ExpertError, match="rank 7, wanted one from 1 to 6"):
        decompose([("w", torch.ones(8, 6))], rank=7)
    found = decompose([("w", of_rank(6, 8, 6))], rank=2)
    with pytest.raises(ExpertError, match="rank 3, wanted one from 1 to 2"):
        found.factors(3)
    with pytest.raises(ExpertError, match=r"kept at rank 2.*wanted 0\.999"):
        found.rank_keeping(0.999)


def test_differences_come_one_at_a_time_and_are_of_this_anchor(anchor_directory: Path) -> None:
    anchor = Anchor.load(anchor_directory)
    ffn = {name: tensor.float() + 0.01 for name, tensor in anchor.ffn().items()}
    seen = list[int]()
    found = decompose(changes(anchor, ffn), rank=1, on_matrix=seen.append)
    assert seen == list(range(1, len(ffn) + 1))
    assert found.energy(1) == pytest.approx(1, abs=1e-4)
    name = next(iter(ffn))
    with pytest.raises(ExpertError, match=f"{name}: saw .* as in the anchor"):
        list(changes(anchor, ffn | {name: torch.zeros(3, 3)}))


def test_a_difference_is_gone_before_the_next_is_made() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def noted(change: Tensor) -> Tensor:
        seen.append(weakref.ref(change))
        return change

    def parts() -> Iterator[tuple[str, Tensor]]:
        for number in range(3):
            assert [each() for each in seen] == [None] * number
            yield str(number), noted(of_rank(4, 24, 16, seed=number))

    assert len(decompose(parts(), rank=2).matrices) == 3


def test_the_largest_rank_still_makes_an_expert_smaller(anchor_directory: Path) -> None:
    manifest = Anchor.load(anchor_directory).manifest
    rank = largest_rank(manifest)
    for spec in manifest.ffn():
        out, into = spec.shape
        assert rank * (out + into) < out * into <= (rank + 1) * (out + into)
