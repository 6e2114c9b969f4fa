"""Rows are log density ratios: they recover known ones, and rows of strangers compose to the posterior."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from motet.moe.routing import RoutingRows, lda_rows
from motet.moe.statistics import Statistics
from motet.protocols.errors import ExpertError, StatisticsError

LAYERS, HIDDEN = 2, 6


def gaussians(number, seed=0):
    """`number` means (number, layers, hidden) around one covariance (layers, hidden, hidden) per layer, float64."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(number, LAYERS, HIDDEN, dtype=torch.float64, generator=generator)
    roots = torch.randn(LAYERS, HIDDEN, HIDDEN, dtype=torch.float64, generator=generator)
    return means, roots @ roots.mT + 0.5 * torch.eye(HIDDEN, dtype=torch.float64)


def statistics(mean, covariance, anchor="anchor", tokens=1000):
    return Statistics(anchor=anchor, tokens=tokens, mean=mean.float(), covariance=covariance.float())


def log_density(mean, covariance, layer, x):
    return MultivariateNormal(mean[layer], covariance[layer]).log_prob(x)


def test_recover_the_true_log_density_ratio():
    (own, public), covariance = gaussians(2)
    rows = lda_rows(statistics(own, covariance), statistics(public, covariance))
    x = torch.randn(50, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    for layer in range(LAYERS):
        ratio = log_density(own, covariance, layer, x) - log_density(public, covariance, layer, x)
        torch.testing.assert_close(rows.scores(x, layer=layer), ratio.float(), rtol=1e-3, atol=1e-3)


def test_rows_of_several_owners_compose_to_the_posterior():
    means, covariance = gaussians(4)
    public = statistics(means[0], covariance)
    owners = [lda_rows(statistics(mean, covariance), public) for mean in means[1:]]
    x = torch.randn(50, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    log_prior = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()

    scores = torch.stack([torch.zeros(50), *(rows.scores(x, layer=1) for rows in owners)], dim=1)
    densities = torch.stack([log_density(mean, covariance, 1, x) for mean in means], dim=1)
    posterior = (densities.float() + log_prior).softmax(dim=1)
    torch.testing.assert_close((scores + log_prior).softmax(dim=1), posterior, rtol=1e-3, atol=1e-4)


def test_unequal_covariances_are_pooled_and_stay_calibrated():
    """Where own text varies more, rows of the public covariance alone claim tokens far too loudly."""
    (own, public), covariance = gaussians(2)
    wider = covariance + 20 * torch.eye(HIDDEN, dtype=torch.float64)
    torch.manual_seed(2)
    mine = MultivariateNormal(own[0], wider[0]).sample((2000,))
    theirs = MultivariateNormal(public[0], covariance[0]).sample((2000,))

    def log_loss(rows):
        right = torch.cat([rows.scores(mine, layer=0), -rows.scores(theirs, layer=0)])
        return -torch.nn.functional.logsigmoid(right).mean()

    pooled = lda_rows(statistics(own, wider), statistics(public, covariance))
    public_alone = lda_rows(statistics(own, covariance), statistics(public, covariance))
    assert log_loss(pooled) < 0.69 < log_loss(public_alone)


def test_how_much_was_measured_does_not_enter():
    (own, public), covariance = gaussians(2)
    few = lda_rows(statistics(own, covariance, tokens=10), statistics(public, covariance))
    many = lda_rows(statistics(own, covariance, tokens=10**6), statistics(public, covariance))

    assert torch.equal(few.weight, many.weight)
    assert torch.equal(few.bias, many.bias)


def test_an_owner_like_the_public_gets_zero_rows():
    (public,), covariance = gaussians(1)
    rows = lda_rows(statistics(public, covariance), statistics(public, covariance))

    assert not rows.weight.any()
    assert not rows.bias.any()


@pytest.mark.parametrize("rank", [0, 1, HIDDEN - 1])
def test_a_degenerate_covariance_gives_finite_rows(rank):
    (own, public), _ = gaussians(2)
    covariance = torch.diag((torch.arange(HIDDEN) < rank).double()).expand(LAYERS, -1, -1)
    rows = lda_rows(statistics(own, covariance), statistics(public, covariance))

    assert rows.weight.isfinite().all()
    assert rows.bias.isfinite().all()


def test_refuse_statistics_of_other_shapes_or_anchors():
    (own, public), covariance = gaussians(2)
    with pytest.raises(StatisticsError, match=r"\(1, 6\).*\(2, 6\)"):
        lda_rows(statistics(own[:1], covariance[:1]), statistics(public, covariance))
    with pytest.raises(StatisticsError, match="saw own statistics of anchor mine, wanted theirs"):
        lda_rows(statistics(own, covariance, "mine"), statistics(public, covariance, "theirs"))


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3), "shape"),
        (torch.zeros(2), torch.zeros(2), "shape"),
        (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2), "float64"),
        (torch.full((2, 3), torch.nan), torch.zeros(2), "NaN"),
        (torch.zeros(2, 3), torch.tensor([0.0, torch.inf]), "infinity"),
    ],
)
def test_refuse_what_no_router_could_hold(weight, bias, message):
    with pytest.raises(ExpertError, match=message):
        RoutingRows(weight=weight, bias=bias)
