"""Routing rows: one log density ratio per layer, so that rows of owners who never met compose.

The anchor's row is zero. Owner i's row estimates log p_i(x) / p_public(x) at a layer's MLP input x, from
its own statistics and the anchor's public ones alone, so no row depends on another owner and removing
one leaves the others exact. The softmax over the concatenated rows plus log priors is then the posterior
over domains. How much text an owner measured does not enter: a ratio of densities has no sampling odds.

    public = anchor.statistics()
    rows = lda_rows(measure(anchor, own_texts), public)
    scores = rows.scores(layer_input, layer=0)  # nats, against the anchor's 0
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from motet.moe.covariance import Covariance, LowRankCovariance
from motet.moe.statistics import Statistics
from motet.protocols.errors import ExpertError, StatisticsError

EIGENVALUE_FLOOR = 1e-6
"""Directions with less than this share of the mean variance are treated as having this much."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingRows:
    """One expert's routing, float32 and finite, in nats.

    `weight` (layers, hidden) and `bias` (layers,) score a layer's MLP input. `tokens` (vocabulary,) is what a token
    says by its id alone, the evidence of a filter (`motet.moe.token_evidence`); None where the charter asks for none.
    """

    weight: Tensor
    bias: Tensor
    tokens: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse what no router could hold; raises ExpertError."""
        if self.weight.ndim != 2 or tuple(self.bias.shape) != (self.weight.shape[0],):
            raise ExpertError(
                f"saw a routing weight of shape {tuple(self.weight.shape)} with a bias of shape "
                f"{tuple(self.bias.shape)}, wanted (layers, hidden) with (layers,)"
            )
        if self.tokens is not None and self.tokens.ndim != 1:
            raise ExpertError(f"saw evidence of shape {tuple(self.tokens.shape)}, wanted one value for each token id")
        given = [self.weight, self.bias, *(() if self.tokens is None else (self.tokens,))]
        if dtypes := {str(tensor.dtype) for tensor in given} - {"torch.float32"}:
            raise ExpertError(f"saw routing rows in {', '.join(sorted(dtypes))}, wanted float32")
        if not all(tensor.isfinite().all() for tensor in given):
            raise ExpertError("saw NaN or infinity in routing rows, wanted finite numbers; fit them again")

    @property
    def layers(self) -> int:
        """Number of layers these rows cover."""
        return int(self.weight.shape[0])

    @property
    def hidden_size(self) -> int:
        """Width of the MLP input these rows read."""
        return int(self.weight.shape[1])

    def evidence(self, vocabulary_size: int) -> Tensor:
        """What each token id says in nats: (vocabulary,), zeros if nothing. Raises ExpertError for a misfit."""
        if self.tokens is None:
            return torch.zeros(vocabulary_size)
        if len(self.tokens) != vocabulary_size:
            raise ExpertError(
                f"saw evidence for {len(self.tokens)} tokens, wanted {vocabulary_size} as the anchor has; count again"
            )
        return self.tokens

    def scores(self, x: Tensor, *, layer: int) -> Tensor:
        """Log density ratio in nats of each MLP input: x (..., hidden) -> (...)."""
        return x.float() @ self.weight[layer] + self.bias[layer]


def lda_rows(own: Statistics, public: Statistics, *, intercept: bool = True) -> RoutingRows:
    """Rows in closed form: w = S^-1 (m_own - m_public), b = -w.(m_own + m_public) / 2, S the pooled covariance.

    Exact when both densities are Gaussian with one covariance (linear discriminant analysis; Hastie, Tibshirani
    and Friedman, The Elements of Statistical Learning, section 4.3, with the log prior odds left out). S is the plain
    mean of the own and the public covariance. Public alone is worse: an owner's text varies along other directions, and
    rows that take them for noise-free are over-confident (docs/adr/0005-rows-in-closed-form.md has figures).
    Where the covariances are of low rank plus diagonal, so is S, and no matrix (hidden, hidden) is made.
    Without `intercept` b is zero and w = S^-1 (d - k c), with d = m_own - m_public, c the midpoint of the means and k
    such that w.c = 0: of all directions whose score has its threshold at zero the one that tells the two apart best.
    Its score is N(+w.d/2, w.d) on own and N(-w.d/2, w.d) on public inputs, so it is the log ratio of its own densities.
    Raises StatisticsError when the two were measured on different anchors, in different shapes or forms.
    """
    _require_comparable(own, public)
    m_own, m_public = own.mean.double(), public.mean.double()
    weight = _solve_pooled(own.covariance, public.covariance, m_own - m_public)
    midpoint = (m_own + m_public) / 2
    if intercept:
        bias = -(weight * midpoint).sum(dim=1)
    else:
        weight, bias = _through_zero(own, public, weight, midpoint), torch.zeros(len(weight))
    return RoutingRows(weight=weight.float(), bias=bias.float())


def _through_zero(own: Statistics, public: Statistics, weight: Tensor, midpoint: Tensor) -> Tensor:
    """Takes from each row (layers, hidden) what scores the midpoint: w - k S^-1 c, k = w.c / (c.S^-1 c)."""
    solved = _solve_pooled(own.covariance, public.covariance, midpoint)
    norm = (midpoint * solved).sum(dim=1, keepdim=True)
    share = (weight * midpoint).sum(dim=1, keepdim=True) / norm.where(norm > 0, 1.0)
    return weight - share * solved


def _require_comparable(own: Statistics, public: Statistics) -> None:
    if own.mean.shape != public.mean.shape:
        raise StatisticsError(
            f"saw own statistics of shape {tuple(own.mean.shape)} and public ones of {tuple(public.mean.shape)} "
            "(layers, hidden), wanted the same; measure both on the charter's anchor"
        )
    if own.anchor != public.anchor:
        raise StatisticsError(
            f"saw own statistics of anchor {own.anchor}, wanted {public.anchor} as the public ones; measure again"
        )


def _solve_pooled(own: Covariance, public: Covariance, difference: Tensor) -> Tensor:
    """S^-1 d of every layer, S the mean of both covariances: difference (layers, hidden) -> (layers, hidden)."""
    layers = range(len(difference))
    if isinstance(own, LowRankCovariance) and isinstance(public, LowRankCovariance):
        diagonal = (own.diagonal.double() + public.diagonal.double()) / 2
        factors = (torch.cat([own.factor[i], public.factor[i]], dim=1).double() / 2**0.5 for i in layers)
        solved = [_solve_low_rank(*each) for each in zip(diagonal, factors, difference, strict=True)]
        return torch.stack(solved)
    if isinstance(own, Tensor) and isinstance(public, Tensor):
        return torch.stack([_solve((own[i].double() + public[i].double()) / 2, difference[i]) for i in layers])
    raise StatisticsError(
        "saw a full covariance beside one of low rank plus diagonal, wanted both of one form; measure both alike"
    )


def _solve(covariance: Tensor, difference: Tensor) -> Tensor:
    """S^-1 d with the spectrum floored; zero when S is zero, since then nothing is known about distances."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = float(values.mean()) * EIGENVALUE_FLOOR
    if not floor > 0:
        return torch.zeros_like(difference)
    solved: Tensor = vectors @ ((vectors.T @ difference) / values.clamp(min=floor))
    return solved


def _solve_low_rank(diagonal: Tensor, factor: Tensor, difference: Tensor) -> Tensor:
    """S^-1 d for S = diag(diagonal) + F F^T with F (hidden, rank), the diagonal floored like the spectrum in `_solve`.

    By the identity of Woodbury (Golub and Van Loan, Matrix Computations, 4th edition, section 2.1.4) on S scaled to a
    unit diagonal part, which leaves one system (rank, rank) whose eigenvalues are at least 1.
    """
    floor = float((diagonal.sum() + factor.square().sum()) / len(diagonal)) * EIGENVALUE_FLOOR
    if not floor > 0:
        return torch.zeros_like(difference)
    scale = diagonal.clamp(min=floor).sqrt()
    factor, difference = factor / scale[:, None], difference / scale
    inner = torch.eye(factor.shape[1], dtype=factor.dtype) + factor.T @ factor
    inside = torch.cholesky_solve((factor.T @ difference)[:, None], torch.linalg.cholesky(inner))[:, 0]
    solved: Tensor = (difference - factor @ inside) / scale
    return solved
