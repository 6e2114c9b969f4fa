"""Calibration of a gate: of the tokens that it gives a mass of about 0.8 to an expert, 0.8 should be that expert's.

Guarantees: made from sums alone, so that it can be computed where no text is; every domain weighs the same however much
of it was scored, as the experts' equal priors presume.

    found = reliability("medicine", {"medicine": Histogram(...), "code": Histogram(...)})
    found.rows[-1].predicted, found.rows[-1].right, found.error
"""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from motet.protocols.documents import Strict
from motet.protocols.errors import DataError
from motet.protocols.evaluation.sums import Count, runs_of_enough

BINS = 10
"""Of equal width over gate masses from 0 to 1; a mass of 1 lies in the last."""


class Histogram(Strict):
    """How the gate's mass for one expert is spread over the tokens of one domain."""

    tokens: tuple[Count, ...] = Field(min_length=BINS, max_length=BINS)
    """How many tokens got a mass in each bin."""
    mass: tuple[float, ...] = Field(min_length=BINS, max_length=BINS)
    """The sum of those masses."""

    @model_validator(mode="after")
    def _masses_fit_bins(self) -> Self:
        for place, (tokens, mass) in enumerate(zip(self.tokens, self.mass, strict=True)):
            slack = 1e-3 * tokens  # the masses were float32 when they were put into bins
            if not (tokens >= 0 and tokens * place / BINS - slack <= mass <= tokens * (place + 1) / BINS + slack):
                raise ValueError(f"bin {place}: {tokens} tokens cannot have a mass of {mass} together")
        return self

    def coarse(self) -> Self:
        """The same sums with no bin of few tokens: neighbours join in the one in which their mean mass lies."""
        tokens, mass = [0] * BINS, [0.0] * BINS
        for run in runs_of_enough(self.tokens):
            held = [place for place in run if self.tokens[place]] or run
            count, total = sum(self.tokens[place] for place in held), sum(self.mass[place] for place in held)
            place = min(max(int(total / max(1, count) * BINS), held[0]), held[-1])
            tokens[place], mass[place] = count, total
        return type(self)(tokens=tuple(tokens), mass=tuple(mass))


class Bin(Strict):
    """The tokens that got about the same mass."""

    predicted: float
    """The mean mass that they got."""
    right: float
    """The share of them that are of the expert's own domain, every domain weighing the same."""
    tokens: int


class Reliability(Strict):
    """How far an expert's gate can be believed."""

    rows: tuple[Bin, ...]
    """The bins that any token fell into, in order."""
    error: float
    """Expected calibration error: the mean of |predicted - right| over tokens, every domain weighing the same."""


def reliability(expert: str, histograms: Mapping[str, Histogram]) -> Reliability:
    """The reliability of one expert's gate (Guo et al., arXiv 1706.04599, section 2).

    Args:
        expert: whose; also the name of its domain.
        histograms: domain -> how the expert's mass is spread there; public text is one more domain.

    Raises:
        DataError: the expert's own domain, or every other, is missing or without tokens.
    """
    totals = {domain: sum(histogram.tokens) for domain, histogram in histograms.items() if any(histogram.tokens)}
    if expert not in totals or len(totals) < 2:
        raise DataError(f"saw histograms of {', '.join(totals) or 'nothing'}, wanted {expert} and another domain")
    rows, error = [], 0.0
    for place in range(BINS):
        weights = {domain: histograms[domain].tokens[place] / total for domain, total in totals.items()}
        weight = sum(weights.values())
        if weight == 0:
            continue
        masses = (histograms[domain].mass[place] / total for domain, total in totals.items())
        predicted, right = sum(masses) / weight, weights[expert] / weight
        rows.append(Bin(predicted=predicted, right=right, tokens=sum(histograms[d].tokens[place] for d in totals)))
        error += weight / len(totals) * abs(predicted - right)
    return Reliability(rows=tuple(rows), error=error)
