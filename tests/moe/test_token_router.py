"""The filter's router: evidence looked up by token id, padding recognised, digits kept."""

import copy

import pytest
import torch

from motet.moe.evidence import Evidence
from motet.moe.token_router import TokenRouter, real_positions

EVIDENCE = Evidence(stay=0.9, temperature=2.0)
PRIORS = (1.0, 0.0, -0.5)
IDS = torch.tensor([[4, 1, 0, 7, 7], [2, 2, 5, 3, 1]])


@pytest.fixture
def router() -> TokenRouter:
    made = TokenRouter(8, EVIDENCE, PRIORS)
    made.weight[1:] = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)) * 2
    return made


def test_it_filters_what_its_tokens_say(router: TokenRouter) -> None:
    scores = torch.stack([torch.stack([router.weight[:, token] for token in row]) for row in IDS])
    assert torch.equal(router(IDS), EVIDENCE.filter(scores, torch.tensor(PRIORS)))
    assert router(IDS).shape == (2, 5, 3)


def test_masks_padding_and_what_came_before_reach_the_filter(router: TokenRouter) -> None:
    mask, real = torch.tensor([[True, False, True], [True, True, True]]), torch.tensor([[False, True], [True, True]])
    first = router(IDS[:, :2], expert_mask=mask, real=real)
    assert not first[0, :, 1].any()
    assert not first[0, 0].any()
    rest = router(IDS[:, 2:], expert_mask=mask, before=first[:, -1])
    whole_real = torch.cat([real, torch.ones(2, 3, dtype=torch.bool)], dim=1)
    assert torch.equal(torch.cat([first, rest], dim=1), router(IDS, expert_mask=mask, real=whole_real))


def test_an_expert_without_evidence_shares_the_anchors_fate(router: TokenRouter) -> None:
    silent = TokenRouter(8, EVIDENCE, PRIORS)
    expected = torch.tensor(PRIORS).softmax(dim=0).expand(2, 5, -1)
    assert torch.allclose(silent(IDS), expected, atol=1e-6)


def test_it_keeps_its_digits_and_learns_nothing(router: TokenRouter) -> None:
    for half in (torch.bfloat16, torch.float16):
        narrow = copy.deepcopy(router).to(half)
        assert narrow.weight.dtype == torch.float32
        assert torch.equal(narrow(IDS), router(IDS))
    assert copy.deepcopy(router).double()(IDS).dtype == torch.float64
    assert not router.weight.requires_grad
    assert not router(IDS).requires_grad


def test_real_positions_from_a_mask() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert real_positions(mask, 4).tolist() == mask.bool().tolist()
    assert real_positions(mask, 1).tolist() == [[True], [True]]  # one more token after a cache
    assert real_positions(None, 4) is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_real_positions_from_a_mask_over_queries_and_keys(dtype: torch.dtype) -> None:
    """What generation hands over with a cache of fixed size: (batch, 1, queries, keys), keys beyond the last unused."""
    may = torch.zeros(1, 1, 3, 8, dtype=torch.bool)
    may[0, 0, 1, 3], may[0, 0, 2, 3:5] = True, True  # two positions cached; the next is padding, then two real ones
    given = may if dtype == torch.bool else torch.zeros(may.shape).masked_fill(~may, torch.finfo(dtype).min)
    assert real_positions(given, 3, past=2).tolist() == [[False, True, True]]
