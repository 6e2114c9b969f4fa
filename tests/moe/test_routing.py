"""Rows are log density ratios: they recover known ones, and rows of strangers compose to the posterior."""

import json
from pathlib import Path

import pytest
import torch
from torch.distributions import MultivariateNormal

from motet.moe.anchor import Anchor
from motet.moe.covariance import LowRankCovariance, SketchedMoments, stack
from motet.moe.routing import RoutingRows, lda_rows
from motet.moe.statistics import Statistics, measure
from motet.protocols.errors import ExpertError, StatisticsError
from motet.protocols.split import is_held_out

LAYERS, HIDDEN = 2, 6
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


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


def test_without_intercept_a_row_is_the_log_ratio_of_its_own_densities():
    """The score is normal on either side, and the log ratio of these two normals at any score is that score."""
    (own, public), covariance = gaussians(2)
    rows = lda_rows(statistics(own, covariance), statistics(public, covariance), intercept=False)
    assert not rows.bias.any()
    for layer in range(LAYERS):
        row = rows.weight[layer].double()
        centres, variance = [float(row @ each[layer]) for each in (own, public)], float(row @ covariance[layer] @ row)
        assert centres[0] == pytest.approx(-centres[1], rel=1e-4)
        assert centres[0] - centres[1] == pytest.approx(variance, rel=1e-4)
        assert centres[0] > 0.01


def test_without_intercept_no_row_through_zero_tells_more():
    (own, public), covariance = gaussians(2)
    found = lda_rows(statistics(own, covariance), statistics(public, covariance), intercept=False).weight[0].double()
    difference, midpoint = own[0] - public[0], (own[0] + public[0]) / 2

    def apart(row):
        return float((row @ difference) / (row @ covariance[0] @ row).sqrt())

    draw = torch.Generator().manual_seed(3)
    for _ in range(50):
        other = found + torch.randn(HIDDEN, dtype=torch.float64, generator=draw) * found.norm() / 3
        other -= midpoint * (other @ midpoint) / (midpoint @ midpoint)
        assert apart(other) <= apart(found) * (1 + 1e-5)


def test_without_intercept_low_rank_covariances_give_the_same_row():
    draw = torch.Generator().manual_seed(4)
    means, factor = torch.randn(2, LAYERS, HIDDEN, generator=draw), torch.randn(LAYERS, HIDDEN, 2, generator=draw)
    diagonal = torch.rand(LAYERS, HIDDEN, generator=draw) + 0.5
    dense = torch.diag_embed(diagonal) + factor @ factor.mT
    narrow = LowRankCovariance(diagonal=diagonal, factor=factor)
    sides = [
        [Statistics(anchor="a", tokens=9, mean=mean, covariance=each) for mean in means] for each in (dense, narrow)
    ]
    full, low = (lda_rows(*pair, intercept=False) for pair in sides)
    torch.testing.assert_close(full.weight, low.weight, rtol=1e-3, atol=1e-4)


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


def test_low_rank_solves_like_the_full_matrix():
    generator = torch.Generator().manual_seed(0)
    own, public = torch.randn(2, LAYERS, 30, generator=generator)

    def covariance(rank):
        factor = torch.randn(LAYERS, 30, rank, generator=generator) * torch.logspace(-1, 0.3, rank)
        return LowRankCovariance(diagonal=torch.rand(LAYERS, 30, generator=generator) + 0.1, factor=factor)

    low = covariance(5), covariance(8)  # ranks may differ
    full = [torch.diag_embed(each.diagonal) + each.factor @ each.factor.mT for each in low]
    rows, expected = (lda_rows(statistics(own, a), statistics(public, b)) for a, b in (low, full))

    torch.testing.assert_close(rows.weight, expected.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(rows.bias, expected.bias, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variance", [0.0, 1.0])
def test_a_degenerate_low_rank_covariance_gives_finite_rows(variance):
    (own, public), _ = gaussians(2)
    factor = torch.full((LAYERS, HIDDEN, 1), variance)
    covariance = LowRankCovariance(diagonal=torch.zeros(LAYERS, HIDDEN), factor=factor)
    rows = lda_rows(statistics(own, covariance), statistics(public, covariance))

    assert rows.weight.isfinite().all()
    assert bool(rows.weight.any()) == bool(variance)


def test_refuse_a_full_covariance_beside_a_low_rank_one():
    (own, public), covariance = gaussians(2)
    low = LowRankCovariance(diagonal=torch.ones(LAYERS, HIDDEN), factor=torch.zeros(LAYERS, HIDDEN, 2))
    with pytest.raises(StatisticsError, match="wanted both of one form"):
        lda_rows(statistics(own, covariance), statistics(public, low))


def log_loss(rows, mine, theirs, layer=0):
    """Nats per position of telling own positions (count, hidden) from public ones, both equally likely."""
    right = [rows.scores(mine, layer=layer), -rows.scores(theirs, layer=layer)]
    return -sum(float(torch.nn.functional.logsigmoid(each).mean()) for each in right) / 2


def test_wide_rows_come_close_to_the_true_log_density_ratio():
    """1536 wide, 32 leading directions over an uneven floor; figures of rank 256 against the exact dense solution."""
    hidden, rank, count = 1536, 32, 6000
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    factor = normal(hidden, rank) / hidden**0.5 * torch.linspace(16, 2, rank)
    floor = torch.rand(hidden, generator=generator, dtype=torch.float64) * 1.5 + 0.5
    mean = normal(hidden) * 0.04 + factor @ normal(rank) / 2

    def draw(number, at):
        return at + normal(number, rank) @ factor.T + normal(number, hidden) * floor.sqrt()

    def measured(at):
        moments = SketchedMoments(hidden, rank=256)
        moments.add(draw(count, at))
        return Statistics(
            anchor="anchor", tokens=count, mean=moments.mean().float()[None], covariance=stack([moments.covariance()])
        )

    rows = lda_rows(measured(mean), measured(0 * mean))
    weight = torch.linalg.solve(factor @ factor.T + torch.diag(floor), mean)
    exact = RoutingRows(weight=weight.float()[None], bias=-(weight @ mean).float()[None] / 2)
    diagonal = mean / (factor.square().sum(dim=1) + floor)
    blind = RoutingRows(weight=diagonal.float()[None], bias=-(diagonal @ mean).float()[None] / 2)
    mine, theirs = draw(3000, mean), draw(3000, 0 * mean)
    loss, best, worst = (log_loss(each, mine, theirs) for each in (rows, exact, blind))
    cosine = float(torch.cosine_similarity(rows.weight, exact.weight))

    # Measured: 0.81 (0.21 from the diagonal alone), and 0.201 nats against 0.160 at best and 6.9 from the diagonal.
    assert cosine > 0.78
    assert best < loss < best + 0.06
    assert worst > 10 * loss


def quickstart_texts(name, *, held_out):
    with (QUICKSTART / "text" / f"{name}.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return [text for text in texts if is_held_out(text, 0.1, 0) == held_out]


def inputs(anchor, texts, layer):
    """MLP inputs (tokens, hidden) of a layer, BOS left out."""
    model, tokenizer, seen = anchor.model(dtype=torch.float32), anchor.tokenizer(), []
    model.model.layers[layer].mlp.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0][0, 1:]))
    with torch.no_grad():
        for text in texts:
            ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)][:128]
            model(torch.tensor([ids]))
    return torch.cat(seen)


def test_low_rank_rows_nearly_match_full_ones_on_real_text():
    """Telling medicine from public text, the quickstart's anchor being 128 wide."""
    anchor = Anchor.load(QUICKSTART / "anchor")
    own, public = quickstart_texts("medicine", held_out=False), quickstart_texts("public", held_out=False)
    mine, theirs = (inputs(anchor, quickstart_texts(each, held_out=True)[:60], 1) for each in ("medicine", "public"))
    losses = {}
    for rank in (None, 128, 64):
        rows = lda_rows(*(measure(anchor, texts, max_tokens=10_000, rank=rank) for texts in (own, public)))
        losses[rank] = log_loss(rows, mine, theirs, layer=1)

    assert losses[128] == pytest.approx(losses[None], abs=1e-5)
    assert losses[None] < losses[64] < losses[None] + 0.1  # measured: 0.468 and 0.494 nats


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
