"""The filter is the forward recursion of a hidden Markov model, and experts that are off leave no trace in it."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from motet.moe.evidence import Evidence
from motet.protocols.errors import AssemblyError


def forward_recursion(scores: Tensor, log_prior: Tensor, *, stay: float, temperature: float) -> Tensor:
    """Rabiner 1989, section III.A, with matrices, for one text: scores (seq, experts) -> (seq, experts) in float64."""
    prior = log_prior.double().softmax(dim=0)
    transition = stay * torch.eye(len(prior), dtype=torch.float64) + (1 - stay) * prior.expand(len(prior), -1)
    alpha, found = prior, [prior]  # the first token has nothing before it: it gives no evidence
    for score in scores[1:].double():
        alpha = torch.diag((score / temperature).exp()) @ transition.T @ alpha
        alpha = alpha / alpha.sum()
        found.append(alpha)
    return torch.stack(found)


def random_scores(batch: int, length: int, experts: int, *, seed: int = 0, spread: float = 3.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, experts, generator=draw) * spread


settings = st.tuples(st.sampled_from([0.0, 0.5, 0.98, 0.9999]), st.sampled_from([0.5, 1.0, 4.0, 30.0]))


@given(settings, st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**31))
def test_it_is_the_forward_recursion(setting: tuple[float, float], experts: int, length: int, seed: int) -> None:
    scores = random_scores(2, length, experts, seed=seed)
    log_prior = random_scores(1, 1, experts, seed=seed + 1)[0, 0]
    found = Evidence(stay=setting[0], temperature=setting[1]).filter(scores, log_prior)
    for row in range(2):
        wanted = forward_recursion(scores[row], log_prior, stay=setting[0], temperature=setting[1])
        assert torch.allclose(found[row].double(), wanted, atol=1e-5)
    assert torch.allclose(found.sum(dim=-1), torch.ones(2, length), atol=1e-5)


@st.composite
def masked(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (batch, seq, experts), log priors, and a set for every row with the anchor in it."""
    batch, length, experts = draw(st.integers(1, 5)), draw(st.integers(1, 20)), draw(st.integers(1, 9))
    seed, spread = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.1, 3.0, 100.0]))
    mask = torch.rand(batch, experts, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[:, 0] = True
    scores = random_scores(batch, length, experts, seed=seed, spread=spread)
    return scores, random_scores(1, 1, experts, seed=seed + 1)[0, 0], mask


@given(masked(), settings)
def test_masked_equals_removed_bit_for_bit(case: tuple[Tensor, Tensor, Tensor], setting: tuple[float, float]) -> None:
    scores, log_prior, mask = case
    evidence = Evidence(stay=setting[0], temperature=setting[1])
    together = evidence.filter(scores, log_prior, mask=mask)
    for row, kept in enumerate(mask):
        alone = evidence.filter(scores[row : row + 1, :, kept], log_prior[kept])
        assert torch.equal(together[row : row + 1, :, kept], alone)
        assert not together[row][:, ~kept].any()


def test_what_a_masked_expert_says_does_not_matter() -> None:
    evidence, scores = Evidence(stay=0.9, temperature=1.0), random_scores(3, 8, 4)
    mask = torch.tensor([True, False, True, True]).expand(3, -1)
    loud = scores.clone()
    loud[:, :, 1] = 1e8
    log_prior = torch.tensor([1.0, 0.0, -1.0, 0.5])
    louder = log_prior + torch.tensor([0.0, 90.0, 0.0, 0.0])
    quiet = evidence.filter(scores, log_prior, mask=mask)
    assert torch.equal(quiet, evidence.filter(loud, louder, mask=mask))


@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 3), (2, 4)])
def test_padding_changes_nothing(left: int, right: int) -> None:
    evidence, log_prior = Evidence(stay=0.9, temperature=2.0), torch.tensor([1.0, 0.0, -0.5])
    scores = random_scores(2, 7, 3)
    alone = evidence.filter(scores, log_prior)
    noise = random_scores(2, left + right, 3, seed=1, spread=20.0)
    padded = torch.cat([noise[:, :left], scores, noise[:, left:]], dim=1)
    real = torch.zeros(2, padded.shape[1], dtype=torch.bool)
    real[:, left : left + 7] = True
    found = evidence.filter(padded, log_prior, real=real)
    assert torch.equal(found[:, left : left + 7], alone)
    assert not found[:, :left].any()  # the text has not begun
    assert torch.equal(found[:, left + 7 :], alone[:, -1:].expand(-1, right, -1))


def test_rows_of_different_lengths_do_not_see_each_other() -> None:
    evidence, log_prior = Evidence(stay=0.95, temperature=1.5), torch.zeros(3)
    scores = random_scores(3, 9, 3)
    real = torch.arange(9) >= torch.tensor([0, 4, 8])[:, None]
    together = evidence.filter(scores, log_prior, real=real)
    for row, start in enumerate([0, 4, 8]):
        assert torch.equal(together[row, start:], evidence.filter(scores[row : row + 1, start:], log_prior)[0])


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_going_on_from_before_equals_one_pass(cut: int) -> None:
    evidence, log_prior, scores = Evidence(stay=0.9, temperature=2.0), torch.randn(4), random_scores(2, 10, 4)
    mask = torch.tensor([[True, True, False, True], [True, False, True, True]])
    whole = evidence.filter(scores, log_prior, mask=mask)
    first = evidence.filter(scores[:, :cut], log_prior, mask=mask)
    rest = evidence.filter(scores[:, cut:], log_prior, mask=mask, before=first[:, -1])
    assert torch.equal(torch.cat([first, rest], dim=1), whole)


def test_going_on_from_padding_alone_is_a_beginning() -> None:
    evidence, log_prior, scores = Evidence(stay=0.9, temperature=2.0), torch.tensor([0.5, 0.0]), random_scores(1, 5, 2)
    padding = evidence.filter(scores[:, :2], log_prior, real=torch.zeros(1, 2, dtype=torch.bool))
    rest = evidence.filter(scores[:, 2:], log_prior, before=padding[:, -1])
    assert torch.equal(rest, evidence.filter(scores[:, 2:], log_prior))


def test_the_first_token_gives_the_prior() -> None:
    log_prior = torch.tensor([2.0, 0.0, -1.0])
    found = Evidence(stay=0.9, temperature=1.0).filter(random_scores(2, 1, 3, spread=50.0), log_prior)
    assert torch.allclose(found, log_prior.softmax(dim=0).expand(2, 1, -1))


def believed(evidence: Evidence, told: Sequence[int]) -> list[int]:
    """The most probable of three domains at every position, when each token is 2 nats in favour of one."""
    scores = 2.0 * torch.nn.functional.one_hot(torch.tensor(told), 3).float()
    return evidence.filter(scores[None], torch.zeros(3))[0].argmax(dim=-1).tolist()


def test_a_switch_of_domain_is_followed_and_one_odd_token_is_not() -> None:
    evidence = Evidence(stay=0.99, temperature=2.0)
    switched = believed(evidence, [1] * 20 + [2] * 20)
    assert switched[5:20] == [1] * 15
    assert switched[30:] == [2] * 10  # 0.99 forgets: it takes about log(100) / 1 tokens, not as many as went before
    assert believed(evidence, [1] * 20 + [2] + [1] * 5)[5:] == [1] * 21


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1e4, 1e8])
@pytest.mark.parametrize("priors", [[0.0, 0.0, 0.0], [50.0, -50.0, 0.0], [-50.0, 50.0, 50.0]])
def test_no_evidence_is_too_extreme(dtype: torch.dtype, spread: float, priors: list[float]) -> None:
    scores = random_scores(4, 50, 3, spread=spread).to(dtype)
    scores[0, 10:30] = torch.tensor([0.0, spread, 0.0], dtype=dtype)  # long in one favour, then in another's
    scores[0, 30:] = torch.tensor([spread, 0.0, 0.0], dtype=dtype)
    mask = torch.tensor([[True, True, True], [True, False, True], [True, True, False], [True, False, False]])
    found = Evidence(stay=0.999, temperature=0.5).filter(scores, torch.tensor(priors, dtype=dtype), mask=mask)
    assert found.isfinite().all()
    assert torch.allclose(found.sum(dim=-1), torch.ones(4, 50, dtype=dtype), atol=1e-5)
    assert torch.equal(found[3], torch.tensor([1.0, 0.0, 0.0], dtype=dtype).expand(50, -1))


@pytest.mark.parametrize("setting", [{"stay": 1.0}, {"stay": -0.1}, {"temperature": 0.0}, {"temperature": -1.0}])
def test_settings_of_no_filter_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(AssemblyError, match="wanted 0 <= stay < 1 and a temperature over 0"):
        Evidence(**{"stay": 0.9, "temperature": 1.0} | setting)
