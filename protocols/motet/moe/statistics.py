"""Statistics of every layer's MLP input: what an owner's text and the public text are compared by.

Measured on the frozen anchor in one pass with float64 sums, so memory does not grow with the text. Padding and the
first positions (BOS at least) are left out: every text looks alike there. Anchors wider than `MAX_DENSE_SIZE` have
covariances of low rank plus diagonal (`motet.moe.covariance`), here and in the file: no matrix hidden by hidden.

    public = measure(anchor, texts, max_tokens=50_000)
    public.save(directory / "statistics.safetensors")
    Statistics.load(directory / "statistics.safetensors", expect=anchor.digest)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from motet.moe.covariance import Covariance, DenseMoments, LowRankCovariance, Moments, SketchedMoments, stack
from motet.moe.layer_inputs import SEQUENCE_LENGTH, walk
from motet.protocols.canonical import write_atomically
from motet.protocols.errors import StatisticsError

if TYPE_CHECKING:
    from motet.moe.anchor import Anchor

FORMAT = "motet.statistics/1"
MAX_DENSE_SIZE = 1024
"""The widest layer that is given a full covariance; 4 MiB each in float32."""
RANK = 256
"""Rank of the covariances of wider layers: 4 MiB each at 4096 channels, where a full one is 64.

Half of it lost nothing that could be measured on SmolLM2-135M (576 wide, log loss of telling four domains apart on
held-out tokens, layers 7 and 22): 0.33 and 0.29 nats at rank 128, 0.31 and 0.31 at 256, 0.33 and 0.30 with full ones.
"""
TENSORS = {"mean", "covariance"}
LOW_RANK_TENSORS = {"mean", "covariance_diagonal", "covariance_factor"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """Mean (layers, hidden) and shrunk covariance of the MLP inputs, both float32.

    The covariance is (layers, hidden, hidden), or of low rank plus diagonal. `anchor` is the digest of the anchor they
    were measured on and `tokens` the number of positions counted.
    """

    anchor: str
    tokens: int
    mean: Tensor
    covariance: Covariance

    def __post_init__(self) -> None:
        """Refuse what cannot be statistics; raises StatisticsError."""
        size = tuple(self.mean.shape)
        if isinstance(self.covariance, Tensor):
            shape, wanted = tuple(self.covariance.shape), (*size, *size[-1:])
        else:
            shape, wanted = tuple(self.covariance.diagonal.shape), size
        if len(size) != 2 or shape != wanted:
            raise StatisticsError(
                f"saw a mean of shape {size} with a covariance of shape {shape}, wanted "
                "(layers, hidden) with (layers, hidden, hidden), or with a diagonal (layers, hidden) if of low rank"
            )
        tensors = self._tensors()
        if dtypes := {str(each.dtype) for each in tensors.values()} - {"torch.float32"}:
            raise StatisticsError(f"saw statistics in {', '.join(sorted(dtypes))}, wanted float32; measure them again")
        if not all(each.isfinite().all() for each in tensors.values()):
            raise StatisticsError("saw NaN or infinity in the statistics, wanted finite numbers; measure them again")

    def _tensors(self) -> dict[str, Tensor]:
        """What a file holds, by name."""
        if isinstance(self.covariance, Tensor):
            return {"mean": self.mean, "covariance": self.covariance}
        parts = {"covariance_diagonal": self.covariance.diagonal, "covariance_factor": self.covariance.factor}
        return {"mean": self.mean, **parts}

    def save(self, path: Path) -> None:
        """Write the statistics as safetensors, atomically; the same statistics give the same bytes."""
        content = json.dumps({"anchor": self.anchor, "schema": FORMAT, "tokens": self.tokens}, sort_keys=True)
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        # One metadata key: safetensors writes several in an order that changes from run to run.
        write_atomically(path, to_safetensors(tensors, metadata={"motet": content}))

    @classmethod
    def load(cls, path: Path, *, expect: str | None = None) -> Self:
        """Read statistics; raises StatisticsError when unreadable or measured on another anchor than `expect`."""
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("motet", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, ValueError, SafetensorError) as error:
            raise StatisticsError(f"cannot read statistics {path} ({error}); measure or fetch them again") from error
        match about:
            case {"schema": schema} if schema != FORMAT:
                raise StatisticsError(f"saw schema {schema!r} in {path}, wanted {FORMAT}; measure again")
            case {"schema": str(), "anchor": str(anchor), "tokens": int(tokens)}:
                pass
            case _:
                raise StatisticsError(f"saw {about!r} about {path}, wanted schema, anchor and tokens; measure again")
        if expect is not None and anchor != expect:
            raise StatisticsError(
                f"{path} was measured on anchor {anchor}, wanted {expect}; measure on the charter's anchor"
            )
        covariance = _covariance_of(tensors, path)
        return cls(anchor=anchor, tokens=tokens, mean=tensors["mean"], covariance=covariance)


def _covariance_of(tensors: dict[str, Tensor], path: Path) -> Covariance:
    if tensors.keys() == TENSORS:
        return tensors["covariance"]
    if tensors.keys() == LOW_RANK_TENSORS:
        return LowRankCovariance(diagonal=tensors["covariance_diagonal"], factor=tensors["covariance_factor"])
    raise StatisticsError(
        f"saw tensors {', '.join(sorted(tensors)) or 'of no name'} in {path}, wanted {', '.join(sorted(TENSORS))} or "
        f"{', '.join(sorted(LOW_RANK_TENSORS))} and no others; measure or fetch them again"
    )


def measure(
    anchor: Anchor,
    texts: Iterable[str],
    *,
    sequence_length: int = SEQUENCE_LENGTH,
    batch_size: int = 16,
    max_tokens: int | None = None,
    skip_first: int = 1,
    rank: int | None = None,
    device: str | torch.device = "cpu",
) -> Statistics:
    """Measure every layer's MLP input on `texts`, computed in float32 on the stored weights.

    Each text is cut into sequences of at most `sequence_length` tokens; padding and the first `skip_first` positions
    of a sequence (BOS counts as one) are left out. Stops after the batch in which `max_tokens` positions were counted.
    `rank` is the covariances'; None means full covariances up to `MAX_DENSE_SIZE` hidden channels and `RANK` above.
    The anchor runs on `device`; the sums are kept in float64 on the CPU.
    Raises StatisticsError when fewer than two positions remain, or the rank is not between 1 and the anchor's width.
    """
    sums = [_moments(anchor.manifest.hidden_size, rank) for _ in range(anchor.manifest.layers)]

    def observe(layer: int, inputs: Tensor, document: Tensor) -> None:
        sums[layer].add(inputs)

    for counted in walk(
        anchor,
        texts,
        observe,
        sequence_length=sequence_length,
        batch_size=batch_size,
        skip_first=skip_first,
        device=device,
    ):
        if max_tokens is not None and counted >= max_tokens:
            break
    if sums[0].count < 2:
        raise StatisticsError(f"counted {sums[0].count} positions in the texts, wanted at least 2; give more text")
    mean = torch.stack([each.mean().float() for each in sums])
    covariance = stack([each.covariance() for each in sums])
    return Statistics(anchor=anchor.digest, tokens=sums[0].count, mean=mean, covariance=covariance)


def _moments(size: int, rank: int | None) -> Moments:
    if rank is None and size <= MAX_DENSE_SIZE:
        return DenseMoments(size)
    rank = RANK if rank is None else rank
    if not 1 <= rank <= size:
        raise StatisticsError(f"saw rank {rank}, wanted 1 to {size}, the anchor's width")
    return SketchedMoments(size, rank=rank)
