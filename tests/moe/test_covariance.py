"""Covariances of low rank plus diagonal: the diagonal is exact, the rest close, and nothing is hidden squared."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from motet.moe.covariance import (
    DenseMoments,
    LowRankCovariance,
    SketchedMoments,
    low_rank,
    random_basis,
    shrink,
    shrink_low_rank,
)
from motet.moe.routing import lda_rows
from motet.moe.statistics import Statistics
from motet.protocols.errors import StatisticsError

HIDDEN = 40


def samples(count, hidden=HIDDEN, seed=0):
    """Correlated rows (count, hidden), their channels of scales from 0.01 to 100."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(hidden, hidden, generator=generator) * torch.linspace(2, 0, hidden).exp()
    return torch.randn(count, hidden, generator=generator) @ mixing.T * torch.logspace(-2, 2, hidden) + 3


def full(covariance):
    return torch.diag(covariance.diagonal) + covariance.factor @ covariance.factor.T


def counted(moments, x, batch=64):
    for rows in x.split(batch):
        moments.add(rows)
    return moments


def approximated(covariance, rank):
    test = random_basis(len(covariance), min(len(covariance), 2 * rank))
    return low_rank(covariance @ test, test, covariance.diagonal(), rank)


def test_full_rank_is_the_dense_covariance():
    x = samples(500)
    dense, sketched = counted(DenseMoments(HIDDEN), x), counted(SketchedMoments(HIDDEN, rank=HIDDEN), x)

    torch.testing.assert_close(sketched.mean(), dense.mean())
    torch.testing.assert_close(full(sketched.covariance()), dense.covariance(), rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("rank", [1, 5, 20])
@pytest.mark.parametrize("count", [2, 10, 500])
def test_the_diagonal_is_exact_whatever_the_rank_and_the_text(rank, count):
    covariance = torch.cov(samples(count).T.double(), correction=0)
    found = approximated(covariance, rank)

    torch.testing.assert_close(found.variance(), covariance.diagonal(), rtol=1e-9, atol=0)
    assert found.diagonal.min() >= 0


def test_a_higher_rank_comes_closer():
    covariance = torch.corrcoef(samples(500).T.double())
    errors = [float((full(approximated(covariance, rank)) - covariance).norm()) for rank in (1, 5, 10, 20)]

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * covariance.norm() < errors[0]


def test_channels_of_any_scale_are_seen():
    """Five small channels that move together among large ones that do not, as in models with outlier channels."""
    x = torch.randn(2000, HIDDEN, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, 4, HIDDEN)
    x[:, 0] *= 0.01
    x[:, 1:5] = x[:, :1]
    factor = counted(SketchedMoments(HIDDEN, rank=10), x).covariance().factor

    assert 0.9e-4 > factor[0] @ factor[1] > 0.6e-4  # of 1e-4


def test_runs_agree_bit_for_bit_and_batches_matter_little():
    x = samples(500)
    one, same, other = (counted(SketchedMoments(HIDDEN, rank=8), x, batch).covariance() for batch in (64, 64, 7))

    assert torch.equal(one.factor, same.factor)
    assert torch.equal(one.diagonal, same.diagonal)
    assert (full(one) - full(other)).norm() < 0.05 * full(one).norm()


def test_shrinks_like_the_dense_form():
    x = samples(30)
    covariance = torch.cov(x.T.double(), correction=0)
    kept = approximated(covariance, HIDDEN)

    torch.testing.assert_close(full(shrink_low_rank(kept, 30)), shrink(covariance, 30), rtol=1e-8, atol=1e-6)


@pytest.mark.parametrize("silent", [1, HIDDEN])
def test_silent_channels_have_no_variance_and_do_no_harm(silent):
    x = samples(100)
    x[:, :silent] = 5.0
    found = counted(SketchedMoments(HIDDEN, rank=4), x).covariance()

    assert full(found).isfinite().all()
    torch.testing.assert_close(found.factor[:silent], torch.zeros(silent, 4).double())


class Largest(TorchDispatchMode):
    """Remembers the most elements that any tensor made while it is open had."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return made


def test_no_tensor_is_hidden_squared():
    hidden, rank = 800, 20
    x = samples(200, hidden)
    with Largest() as largest:
        found = counted(SketchedMoments(hidden, rank=rank), x).covariance().float()
        one = LowRankCovariance(diagonal=found.diagonal[None], factor=found.factor[None])
        public, own = (
            Statistics(anchor="a", tokens=200, mean=torch.full((1, hidden), at), covariance=one) for at in (0.0, 1.0)
        )
        lda_rows(own, public)

    assert 2 * rank * hidden <= largest.elements < 0.1 * hidden**2


MEASURING = """
import resource, torch
from motet.moe.covariance import SketchedMoments, stack
from motet.moe.routing import lda_rows
from motet.moe.statistics import Statistics
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def measured(at):
    moments = SketchedMoments(16384, rank=16)
    for _ in range(8):
        moments.add(torch.randn(64, 16384) + at)
    mean = moments.mean().float()[None]
    return Statistics(anchor="a", tokens=moments.count, mean=mean, covariance=stack([moments.covariance()]))
lda_rows(measured(0.1), measured(0.0))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_a_process_stays_far_below_a_square_matrix():
    run = subprocess.run([sys.executable, "-c", MEASURING], capture_output=True, text=True, check=True)

    assert int(run.stdout) < 256  # MiB; one (16384, 16384) matrix is 1024 in float32 and 2048 in float64


def test_shrinkage_helps_with_few_samples_and_fades_with_many():
    torch.manual_seed(0)
    truth = torch.diag(torch.linspace(0.2, 2.0, 40, dtype=torch.float64))
    error = {}
    for count in (20, 100_000):
        rows = torch.randn(count, 40, dtype=torch.float64) @ truth.sqrt()
        sample = torch.cov(rows.T, correction=0)
        error[count] = [float((each - truth).norm()) for each in (sample, shrink(sample, count))]

    assert error[20][1] < 0.6 * error[20][0]
    assert error[100_000][1] == pytest.approx(error[100_000][0], rel=0.05)


def test_shrinkage_of_too_few_samples_is_positive_definite():
    rows = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    assert torch.linalg.eigvalsh(shrink(torch.cov(rows.T, correction=0), 3)).min() > 0


@pytest.mark.parametrize(
    ("diagonal", "factor", "message"),
    [
        (torch.ones(4), torch.ones(3, 2), "shape"),
        (torch.ones(4), torch.ones(4, 5), "at most hidden"),
        (torch.ones(2, 4), torch.ones(4, 2), "shape"),
        (torch.ones(4), torch.ones(4, 2).double(), "float64"),
        (-torch.ones(4), torch.ones(4, 2), "negative variance"),
    ],
)
def test_refuses_what_is_no_covariance(diagonal, factor, message):
    with pytest.raises(StatisticsError, match=message):
        LowRankCovariance(diagonal=diagonal, factor=factor)
