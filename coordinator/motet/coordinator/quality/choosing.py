"""How validation documents choose the settings of a composite, never the documents that are reported.

Guarantees: the lowest average of all domains, public among them, of the settings that leave public text within a limit
of the anchor; where none does, the settings that harm it least.

    trials = [Trial(settings={"log_prior_anchor": 1.0}, bits={"public": 2.41, "medicine": 1.9}), ...]
    choose(trials, anchor_public=2.40, limit=0.015).settings
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from motet.protocols.evaluation.losses import PUBLIC

LIMITS = {"filter": 0.015, "token": 0.03, "embedding": 0.03}
"""Routing kind -> how much worse than the anchor public text may become."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One choice of settings, and what it gives."""

    settings: Mapping[str, float]
    bits: Mapping[str, float]
    """Domain -> bits per byte of validation documents."""

    @property
    def average(self) -> float:
        """Over all domains."""
        return sum(self.bits.values()) / len(self.bits)

    def harm(self, anchor_public: float) -> float:
        """How much worse than the anchor public text is."""
        return self.bits[PUBLIC] / anchor_public - 1


def settings_of(grid: Mapping[str, Sequence[float]]) -> Iterator[dict[str, float]]:
    """Every combination of a grid."""
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def choose(trials: Sequence[Trial], *, anchor_public: float, limit: float) -> Trial:
    """The best of the harmless, or the least harmful; the first of equals."""
    harmless = [trial for trial in trials if trial.harm(anchor_public) <= limit]
    if harmless:
        return min(harmless, key=lambda trial: trial.average)
    return min(trials, key=lambda trial: trial.bits[PUBLIC])
