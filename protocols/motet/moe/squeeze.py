"""An expert made low-rank: the truncated singular value decomposition of what it changes (PHLoRA, arXiv 2509.10971).

Of every feed-forward matrix the difference to the anchor, D = U S V^T, is cut to its largest singular values, which
both factors share: A = sqrt(S) V^T, B = U sqrt(S). No other factors of that rank come closer to D in the Frobenius norm
(Eckart and Young 1936). Guarantees: one difference is in memory at a time, beside the factors; a rank's factors begin
with those of every smaller rank; the same expert gives the same factors on one kind of machine.

    found = decompose(changes(anchor, expert.ffn), rank=64)          # or decompose(low_rank.factors.items(), rank=8)
    found.energy(16)                                                 # the share of the squared norm that rank 16 keeps
    factors = found.factors(found.rank_keeping(0.9))
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from motet.moe.anchor import Anchor
from motet.moe.lowrank import Factors
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.errors import ExpertError

OVERSAMPLING = 16
"""Directions that a randomised decomposition looks for beyond those wanted (Halko et al. 2011, section 4.2)."""
POWER_ITERATIONS = 6
"""How often it passes the matrix on: changes that training makes have long tails of singular values."""
FASTER_FROM = 8
"""A matrix whose smaller side is so many times the directions looked for is projected at random: on one core, 2048 x
2048 at rank 64 then takes 0.1 s instead of 2.8. Smaller ones are decomposed whole in about a tenth of a second."""
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """One matrix's difference (out, in) along its largest singular values, the largest first.

    a: (rank, in) float32, rows of V^T times the square root of their singular value.
    b: (out, rank) float32, columns of U likewise.
    kept: (rank,) float64, squared singular values.
    whole: the squared Frobenius norm of all of it.
    """

    a: Tensor
    b: Tensor
    kept: Tensor
    whole: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decomposition:
    """An expert's differences along their largest singular values, by the anchor's tensor names."""

    matrices: Mapping[str, Directions]
    rank: int
    """The largest rank that there are factors of."""

    def energy(self, rank: int) -> float:
        """The share of the squared Frobenius norm of all differences together that a rank keeps; 1 if there are none.

        Raises ExpertError when the rank is beyond the decomposition's.
        """
        self._require(rank)
        whole = math.fsum(each.whole for each in self.matrices.values())
        kept = math.fsum(float(each.kept[:rank].sum()) for each in self.matrices.values())
        return min(1.0, kept / whole) if whole else 1.0

    def rank_keeping(self, share: float) -> int:
        """The smallest rank whose energy reaches a share in (0, 1]; raises ExpertError when none here does."""
        for rank in range(1, self.rank + 1):
            if self.energy(rank) >= share:
                return rank
        raise ExpertError(
            f"saw {self.energy(self.rank):.4f} of the change kept at rank {self.rank}, the largest allowed, wanted "
            f"{share:g}; ask for less energy, or allow a larger rank"
        )

    def factors(self, rank: int) -> dict[str, Factors]:
        """The factors of one rank, float32; raises ExpertError when it is beyond the decomposition's."""
        self._require(rank)
        return {
            name: Factors(a=each.a[:rank].contiguous(), b=each.b[:, :rank].contiguous())
            for name, each in self.matrices.items()
        }

    def _require(self, rank: int) -> None:
        if not 1 <= rank <= self.rank:
            raise ExpertError(f"saw rank {rank}, wanted one from 1 to {self.rank}; decompose with a larger one")


def changes(anchor: Anchor, ffn: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every difference of a full expert to its anchor, float32, one at a time; raises ExpertError if shapes differ."""
    for spec in anchor.manifest.ffn():
        tensor = ffn[spec.name]
        if tuple(tensor.shape) != spec.shape:
            raise ExpertError(
                f"{spec.name}: saw {tuple(tensor.shape)}, wanted {spec.shape} as in the anchor; squeeze it against the "
                "anchor that it was trained on"
            )
        yield spec.name, tensor.detach().cpu().float() - anchor.tensor(spec.name).float()


def decompose(
    parts: Iterable[tuple[str, Tensor | Factors]],
    *,
    rank: int,
    on_matrix: Callable[[int], None] = lambda done: None,
) -> Decomposition:
    """Decompose differences (out, in), or low-rank factors of them, up to a rank.

    Args:
        parts: by the anchor's tensor names; each is asked for when the one before is done.
        rank: the largest rank wanted, at most the smaller side of every matrix, and the rank of every pair of factors.
        on_matrix: told after every matrix how many are done.

    Raises:
        ExpertError: a value is not finite, or the rank does not fit.
    """
    found: dict[str, Directions] = {}
    for name, part in parts:
        limit = min(part.rank, *_shape(part)) if isinstance(part, Factors) else min(part.shape)
        if not 1 <= rank <= limit:
            raise ExpertError(f"{name}: saw rank {rank}, wanted one from 1 to {limit}; choose a smaller one")
        found[name] = _directions(name, part, rank)
        del part  # before the next one is made
        on_matrix(len(found))
    return Decomposition(matrices=found, rank=rank)


def largest_rank(manifest: AnchorManifest) -> int:
    """The largest rank whose factors are smaller than every one of the anchor's feed-forward matrices; 0 if none is."""
    return min((math.prod(spec.shape) - 1) // sum(spec.shape) for spec in manifest.ffn())


def is_randomised(shape: tuple[int, ...], rank: int) -> bool:
    """Whether a matrix is decomposed by random projections, which is faster where it is large for the rank."""
    return FASTER_FROM * (rank + OVERSAMPLING) <= min(shape)


def _shape(factors: Factors) -> tuple[int, int]:
    """Of their product, (out, in)."""
    return factors.b.shape[0], factors.a.shape[1]


def _directions(name: str, part: Tensor | Factors, rank: int) -> Directions:
    parts = (part.a, part.b) if isinstance(part, Factors) else (part,)
    if not all(bool(torch.isfinite(each).all()) for each in parts):
        raise ExpertError(f"{name}: saw NaN or infinity, wanted finite values only; look for a diverged loss")
    if isinstance(part, Factors):
        u, s, vt = _of_product(part)
        whole = float(s.double().square().sum())
    else:
        u, s, vt = _of_matrix(part, rank)
        whole = float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2
    root = s[:rank].sqrt()
    return Directions(
        a=(root[:, None] * vt[:rank]).contiguous(),
        b=(u[:, :rank] * root).contiguous(),
        kept=s[:rank].double().square(),
        whole=whole,
    )


def _of_matrix(change: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, at least rank), S, V^T of a matrix (out, in), the largest singular values first."""
    if not is_randomised(tuple(change.shape), rank):
        u, s, vt = torch.linalg.svd(change, full_matrices=False)
        return u, s, vt
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        u, s, v = torch.svd_lowrank(change, q=rank + OVERSAMPLING, niter=POWER_ITERATIONS)
    return u, s, v.mT


def _of_product(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, r), S, V^T (r, in) of scale B A, without the product: decomposed is a matrix of the rank at most.

    r is the rank, or the smaller side of the product where a rank beyond that was trained.
    """
    left, upper = torch.linalg.qr(factors.b.detach().cpu().float())
    right, lower = torch.linalg.qr(factors.a.detach().cpu().float().mT)
    u, s, vt = torch.linalg.svd(factors.scale * upper @ lower.mT, full_matrices=False)
    return left @ u, s, vt @ right.mT
