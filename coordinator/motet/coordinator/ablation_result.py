"""Which expert sets an ablation looks at, and what it found: pure values, and how they are shown.

sets = sets_of(["code", "law", "medicine"])      # all seven
found = Ablation(documents={"public": 12}, anchor={"public": 1.5}, trials=trials)
found.trials[0].experts                          # predicted best
found.agreement.spearman                         # how well the checked ones were ranked
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from motet.coordinator.rank_correlation import kendall, spearman
from motet.protocols.evaluation.losses import AVERAGE
from motet.protocols.evaluation.shares import MAX_EXPERTS, subsets

Scores = Mapping[str, float]
"""Text -> bits per byte."""


def average(scores: Scores) -> float:
    """The mean over the texts, each counting the same."""
    return sum(scores.values()) / len(scores)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One expert set."""

    experts: tuple[str, ...]
    predicted: Scores
    """Of the average of the experts' parameters."""
    assembled: Scores | None = None
    """Of the composite of these experts; None if it was not checked."""

    def as_json(self) -> dict[str, object]:
        """The trial as a JSON object."""
        return {
            "experts": list(self.experts),
            "predicted": _with_average(self.predicted),
            "assembled": None if self.assembled is None else _with_average(self.assembled),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How well the prediction ranked what was assembled. The checked sets hold the best: they are no random sample."""

    checked: int
    spearman: float | None
    """None where all predictions or all composites score the same."""
    kendall: float | None
    regret: float
    """Bits per byte by which the composite predicted best is above the best composite checked."""

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> "Agreement | None":
        """Of ranked trials; None unless two of them were assembled."""
        pairs = [(average(each.predicted), average(each.assembled)) for each in trials if each.assembled is not None]
        if len(pairs) < 2:
            return None
        predicted, assembled = zip(*pairs, strict=True)
        return cls(
            checked=len(pairs),
            spearman=_rounded(spearman(predicted, assembled)),
            kendall=_rounded(kendall(predicted, assembled)),
            regret=round(assembled[0] - min(assembled), 6),
        )

    def as_json(self) -> dict[str, float | int | None]:
        """The agreement as a JSON object."""
        return {"checked": self.checked, "spearman": self.spearman, "kendall": self.kendall, "regret": self.regret}

    def line(self) -> str:
        """The agreement for people."""
        rho, tau = ("undefined" if value is None else f"{value:.2f}" for value in (self.spearman, self.kendall))
        return (
            f"over {self.checked} composites Spearman's rho is {rho} and Kendall's tau {tau}; the one predicted best "
            f"is {self.regret:.3f} bits per byte above the best of them"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """What every expert set is predicted to score."""

    documents: Mapping[str, int]
    """Text -> how many documents it has."""
    anchor: Scores
    trials: tuple[Trial, ...]
    """The set predicted best first."""

    @property
    def agreement(self) -> Agreement | None:
        """How well the prediction ranked the sets that were assembled; None if fewer than two were."""
        return Agreement.of(self.trials)

    def as_json(self) -> dict[str, object]:
        """The ablation as a JSON object."""
        return {
            "documents": dict(self.documents),
            "anchor": _with_average(self.anchor),
            "sets": [trial.as_json() for trial in self.trials],
            "agreement": None if self.agreement is None else self.agreement.as_json(),
        }

    def lines(self) -> list[str]:
        """The ablation for people: per set the predicted and the assembled average, then the prediction by text."""
        head = "".join(f"{name:>13}" for name in ("predicted", "assembled", *self.documents))
        rows = [f"{head}  bits per byte"]
        rows += [_row(self.anchor, self.anchor, "anchor")]
        rows += [_row(trial.predicted, trial.assembled, " + ".join(trial.experts)) for trial in self.trials]
        return rows if self.agreement is None else [*rows, self.agreement.line()]


def sets_of(experts: Sequence[str]) -> list[frozenset[str]]:
    """The sets to score: every one of up to eight experts; of more all, all but one, and every pair."""
    if len(experts) <= MAX_EXPERTS:
        return [chosen for chosen in subsets(experts) if chosen]
    everyone = frozenset(experts)
    pairs = [frozenset(pair) for pair in combinations(sorted(everyone), 2)]
    return [*pairs, *(everyone - {name} for name in sorted(everyone)), everyone]


def to_check(ranked: Sequence[frozenset[str]], count: int) -> list[frozenset[str]]:
    """The `count` best of a ranking, all experts together, and others spread evenly over the rest, the last among them.

    Twice `count` and one in all, if there are so many; none if `count` is 0.
    """
    if count == 0 or len(ranked) <= 2 * count + 1:
        return list(ranked) if count else []
    chosen = {*ranked[:count], max(ranked, key=len)}
    rest = [each for each in ranked if each not in chosen]
    others = 2 * count + 1 - len(chosen)
    chosen |= {rest[(step + 1) * len(rest) // others - 1] for step in range(others)}
    return [each for each in ranked if each in chosen]


def _row(predicted: Scores, assembled: Scores | None, name: str) -> str:
    cells = [f"{average(predicted):.3f}", "-" if assembled is None else f"{average(assembled):.3f}"]
    return "".join(f"{cell:>13}" for cell in [*cells, *(f"{score:.3f}" for score in predicted.values())]) + f"  {name}"


def _with_average(scores: Scores) -> dict[str, float]:
    return {name: round(score, 6) for name, score in {**scores, AVERAGE: average(scores)}.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
