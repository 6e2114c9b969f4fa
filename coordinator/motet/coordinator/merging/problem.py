"""What every merging method is given, and what it hands back.

Guarantees: every score is of a network that was rounded to the anchor's dtype, so that the best candidate is the one
whose bits are returned; a score that is no number never wins.

    problem = Problem(anchor=anchor.ffn(), experts={"medicine": expert.ffn}, judge=judge)
    best(problem.candidate({"scale": scale}, problem.vectors.network(change)) for scale, change in grid)
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from motet.protocols.errors import ExpertError

Networks = Mapping[str, Tensor]
"""Feed-forward tensors under the anchor's names, as `Anchor.ffn` gives them."""
Settings = dict[str, float | list[float]]
"""What a method chose. `weight:NAME` is what the expert of that name counts, as a list if each tensor has its own."""


class Judge(Protocol):
    """Validation text, never the text that is reported."""

    def __call__(self, ffn: Networks) -> float:
        """Bits per byte, averaged over the domains, public text among them; lower is better."""

    def loss(self, ffn: Networks, step: int) -> Tensor:
        """The loss of a mini-batch drawn by `step`: a scalar, differentiable in `ffn`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One network and how it was judged; infinite if its score is no number."""

    settings: Settings
    ffn: dict[str, Tensor]
    judged: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskVectors:
    """What each expert changed, in float32 (arXiv 2212.04089, section 2): `differences` (experts, parameters).

    A row holds the tensors one after the other, in the order of `anchor`, `sizes` values each.
    """

    anchor: Networks
    differences: Tensor
    sizes: list[int]

    @classmethod
    def of(cls, anchor: Networks, experts: Sequence[Networks]) -> Self:
        """The experts' differences to the anchor."""
        rows = [
            torch.cat([(expert[name].detach().float() - own.float()).flatten() for name, own in anchor.items()])
            for expert in experts
        ]
        return cls(
            anchor=anchor,
            differences=torch.stack(rows),
            sizes=[tensor.numel() for tensor in anchor.values()],
        )

    def network(self, change: Tensor) -> dict[str, Tensor]:
        """The anchor plus a change (parameters,), rounded to the anchor's dtype; differentiable in the change."""
        parts = torch.split(change, self.sizes)
        return {
            name: (own.float() + part.view_as(own)).to(own.dtype)
            for (name, own), part in zip(self.anchor.items(), parts, strict=True)
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Experts of one anchor to be merged. Raises ExpertError when there is none, or one does not fit the anchor."""

    anchor: Networks
    experts: Mapping[str, Networks]
    judge: Judge
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.experts:
            raise ExpertError("saw no expert, wanted at least one to merge; admit one first")
        wanted = {name: tuple(tensor.shape) for name, tensor in self.anchor.items()}
        for expert, ffn in self.experts.items():
            saw = {name: tuple(tensor.shape) for name, tensor in ffn.items()}
            if saw != wanted:
                name = min(key for key in saw.keys() | wanted.keys() if saw.get(key) != wanted.get(key))
                raise ExpertError(
                    f"expert {expert}: saw {name} with shape {saw.get(name)}, wanted {wanted.get(name)} as in the "
                    "anchor; merge experts of one anchor"
                )

    @cached_property
    def vectors(self) -> TaskVectors:
        """The experts' task vectors, in the order of `experts`."""
        return TaskVectors.of(self.anchor, list(self.experts.values()))

    def candidate(self, settings: Settings, ffn: Networks) -> Candidate:
        """Judge a network, rounded to the anchor's dtype."""
        rounded = {name: ffn[name].detach().to(own.dtype) for name, own in self.anchor.items()}
        judged = self.judge(rounded)
        return Candidate(settings=settings, ffn=rounded, judged=math.inf if math.isnan(judged) else judged)

    def weights(self, values: Iterable[float | list[float]]) -> Settings:
        """What each expert counts, under the names that settings have for it."""
        return {f"weight:{name}": value for name, value in zip(self.experts, values, strict=True)}


def best(candidates: Iterable[Candidate]) -> Candidate:
    """The one judged lowest, the first of equals; raises ExpertError when none has a finite score."""
    found = min(candidates, key=lambda candidate: candidate.judged)
    if not math.isfinite(found.judged):
        raise ExpertError("saw no merged network with a finite score, wanted one; look for NaN in the experts' tensors")
    return found
