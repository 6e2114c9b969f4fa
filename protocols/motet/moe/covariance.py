"""Covariances of one layer's MLP input, counted in one pass: dense, or of low rank plus diagonal for wide anchors.

`DenseMoments` holds (hidden, hidden) sums. `SketchedMoments` never does: for the covariance C it holds C's diagonal and
the product of C with a fixed random test matrix (hidden, 2 rank), from which the Nystrom approximation recovers C's
leading part. It guarantees the exact diagonal and a positive definite result, whatever the text.

    moments = SketchedMoments(4096, rank=256)
    for x in batches:  # (tokens, hidden)
        moments.add(x)
    moments.mean(), moments.covariance()

Both are shrunk towards a multiple of the identity by the oracle approximating shrinkage of Chen, Wiesel, Eldar and Hero
(IEEE Transactions on Signal Processing 58 (10), 2010, equation 23), which needs no second pass and no tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from motet.protocols.errors import StatisticsError

TEST_MATRIX_SEED = 0
ROUNDING = 1e-12
"""Directions that the sketch knows to less than this share of the largest are noise of the summation."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRankCovariance:
    """diag(`diagonal`) + `factor` `factor`^T, with diagonal (..., hidden) >= 0 and factor (..., hidden, rank)."""

    diagonal: Tensor
    factor: Tensor

    def __post_init__(self) -> None:
        """Refuse what is no covariance; raises StatisticsError."""
        shape, wanted = tuple(self.factor.shape), tuple(self.diagonal.shape)
        if shape[:-1] != wanted or not wanted or shape[-1] > wanted[-1]:
            raise StatisticsError(
                f"saw a covariance's diagonal of shape {wanted} with a factor of shape {shape}, wanted "
                "(layers, hidden) with (layers, hidden, rank) and a rank of at most hidden"
            )
        if self.diagonal.dtype != self.factor.dtype:
            raise StatisticsError(f"saw a diagonal in {self.diagonal.dtype} with a factor in {self.factor.dtype}")
        if (self.diagonal < 0).any():
            raise StatisticsError("saw a negative variance in a covariance's diagonal, wanted none; measure again")

    def variance(self) -> Tensor:
        """The diagonal of the whole (..., hidden)."""
        return self.diagonal + self.factor.square().sum(dim=-1)

    def float(self) -> LowRankCovariance:
        """The same in float32."""
        return LowRankCovariance(diagonal=self.diagonal.float(), factor=self.factor.float())


Covariance = Tensor | LowRankCovariance


class Moments(Protocol):
    """Running first and second moments of one layer's MLP input."""

    count: int

    def add(self, x: Tensor) -> None:
        """Count rows of x (tokens, hidden)."""

    def mean(self) -> Tensor:
        """Mean (hidden,) in float64."""

    def covariance(self) -> Covariance:
        """Shrunk covariance in float64."""


class _Centred:
    """First moments, and rows taken around the first batch's mean for precision."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._origin = torch.zeros(size, dtype=torch.float64)
        self._first = torch.zeros(size, dtype=torch.float64)

    def mean(self) -> Tensor:
        return self._origin + self._first / self.count

    def _centre(self, x: Tensor) -> Tensor:
        x = x.double()
        if self.count == 0 and len(x):
            self._origin = x.mean(dim=0)
        return x - self._origin

    def _count(self, x: Tensor) -> None:
        self.count += len(x)
        self._first += x.sum(dim=0)


class DenseMoments(_Centred):
    """Moments in (hidden, hidden) float64."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._second = torch.zeros(size, size, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        x = self._centre(x)
        self._count(x)
        self._second += x.T @ x

    def covariance(self) -> Tensor:
        offset = self._first / self.count
        covariance = self._second / self.count - torch.outer(offset, offset)
        return shrink((covariance + covariance.T) / 2, self.count)


class SketchedMoments(_Centred):
    """Moments in (hidden, 2 rank) float64; one test matrix as large is shared by all of a size and rank.

    Rows are counted in units of the first batch's deviations, or large channels would hide small ones from the sketch.
    """

    def __init__(self, size: int, *, rank: int) -> None:
        super().__init__(size)
        self._rank = rank
        self._test = random_basis(size, min(size, 2 * rank))
        self._unit = torch.ones(size, dtype=torch.float64)
        self._squares = torch.zeros(size, dtype=torch.float64)
        self._sketch = torch.zeros_like(self._test)

    def add(self, x: Tensor) -> None:
        x, first = self._centre(x), self.count == 0
        if first and len(x):
            deviation = x.square().mean(dim=0).sqrt()
            self._unit = torch.where(deviation > 0, deviation, 1.0)
        self._count(x)
        x = x / self._unit
        self._squares += x.square().sum(dim=0)
        self._sketch += x.T @ (x @ self._test)

    def covariance(self) -> LowRankCovariance:
        offset = self._first / self._unit / self.count
        variance = (self._squares / self.count - offset.square()).clamp(min=0)
        sketch = self._sketch / self.count - torch.outer(offset, offset @ self._test)
        found = low_rank(sketch, self._test, variance, self._rank)
        scaled = LowRankCovariance(
            diagonal=found.diagonal * self._unit.square(), factor=found.factor * self._unit[:, None]
        )
        return shrink_low_rank(scaled, self.count)


@cache
def random_basis(size: int, width: int) -> Tensor:
    """Random orthonormal columns (size, width) in float64, always the same; treat as read-only."""
    generator = torch.Generator().manual_seed(TEST_MATRIX_SEED)
    gaussian = torch.randn(size, width, dtype=torch.float64, generator=generator)
    basis: Tensor = torch.linalg.qr(gaussian)[0]
    return basis


def low_rank(sketch: Tensor, test: Tensor, variance: Tensor, rank: int) -> LowRankCovariance:
    """A covariance C from `sketch` = C `test` (hidden, width), `test`, and its diagonal `variance` (hidden,).

    The fixed-rank Nystrom approximation Y (T^T Y)^-1 Y^T cut to its leading `rank` eigenvalues (Tropp, Yurtsever, Udell
    and Cevher, Fixed-Rank Approximation of a Positive-Semidefinite Matrix from Streaming Data, NeurIPS 2017, algorithm
    3, with its pseudo-inverse taken by eigenvalues; Halko, Martinsson and Tropp 2011, section 5.4). It never exceeds C,
    so what the diagonal still lacks is not negative. The eigenvalues give up the mean variance of the directions left
    out, which the diagonal holds for all directions (Tipping and Bishop, Probabilistic Principal Component Analysis,
    1999, section 3.2): without that, leading directions would be counted as noisier than they are. The leading part is
    that of the correlations, as rows of a linear discriminant do not depend on the channels' units either.
    """
    scale = variance.sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    sketch, test = sketch / scale[:, None], test * scale[:, None]  # now of the correlations
    inner, vectors = torch.linalg.eigh((test.T @ sketch + sketch.T @ test) / 2)
    known = inner > inner[-1].clamp(min=0) * ROUNDING
    root = (sketch @ vectors[:, known]) / inner[known].sqrt()
    basis, values, _ = torch.linalg.svd(root, full_matrices=False)
    leading = values[:rank].square()
    size = len(variance)
    left_out = (variance.count_nonzero() - leading.sum()).clamp(min=0) / max(size - len(leading), 1)
    factor = torch.zeros(size, rank, dtype=variance.dtype)
    factor[:, : len(leading)] = basis[:, :rank] * (leading - left_out).clamp(min=0).sqrt()
    factor *= scale[:, None]
    return LowRankCovariance(diagonal=(variance - factor.square().sum(dim=1)).clamp(min=0), factor=factor)


def shrink(covariance: Tensor, count: int) -> Tensor:
    """Oracle approximating shrinkage of a sample covariance (hidden, hidden) of `count` samples, in float64.

    Always between the sample covariance and its mean variance times the identity.
    """
    size = covariance.shape[0]
    trace = covariance.trace()
    share = _shrinkage(trace, covariance.square().sum(), size, count)
    identity = torch.eye(size, dtype=covariance.dtype)
    return (1 - share) * covariance + share * trace / size * identity


def shrink_low_rank(covariance: LowRankCovariance, count: int) -> LowRankCovariance:
    """`shrink` of a covariance of low rank plus diagonal, which stays one."""
    diagonal, factor = covariance.diagonal, covariance.factor
    size = len(diagonal)
    trace = covariance.variance().sum()
    cross = 2 * (diagonal[:, None] * factor.square()).sum()
    squared = diagonal.square().sum() + cross + (factor.T @ factor).square().sum()
    share = _shrinkage(trace, squared, size, count)
    return LowRankCovariance(diagonal=(1 - share) * diagonal + share * trace / size, factor=(1 - share) ** 0.5 * factor)


def stack(covariances: Sequence[Covariance]) -> Covariance:
    """The layers' covariances as one, in float32; all of one kind."""
    low = [each.float() for each in covariances if isinstance(each, LowRankCovariance)]
    if not low:
        return torch.stack([each.float() for each in covariances if isinstance(each, Tensor)])
    return LowRankCovariance(
        diagonal=torch.stack([each.diagonal for each in low]), factor=torch.stack([each.factor for each in low])
    )


def _shrinkage(trace: Tensor, squared: Tensor, size: int, count: int) -> float:
    """The share of the identity, from the trace of the sample covariance and the sum of its squares."""
    spread = (count + 1 - 2 / size) * (squared - trace.square() / size)
    return 1.0 if not spread > 0 else min(1.0, float(((1 - 2 / size) * squared + trace.square()) / spread))
