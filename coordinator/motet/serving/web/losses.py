"""Owners' training losses, as a chart and as the table that says the same.

Guarantees: both hold the same figures, at most `ROWS` of each owner: the mean of what was told in each stretch of
steps, for a single step's loss says little.

    figure = loss_figure({"law": {10: 4.2, 20: 3.9}, "medicine": {}})          # None if nobody told any
    figure.chart, figure.table
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from motet.protocols.evaluation.charts import LineChart, loss_chart
from motet.protocols.evaluation.tables import NOTHING, Cell, Table

ROWS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFigure:
    """A line for each owner, and the table with a column for each."""

    chart: LineChart
    table: Table


def loss_figure(told: Mapping[str, Mapping[int, float]]) -> LossFigure | None:
    """What owners told, by name: step -> nats per token."""
    told = {name: losses for name, losses in sorted(told.items()) if losses}
    if not told:
        return None
    width = _width(max(max(losses) for losses in told.values()))
    means = {name: _means(losses, width) for name, losses in told.items()}
    return LossFigure(
        chart=loss_chart({name: list(each.values()) for name, each in means.items()}), table=_table(means, width)
    )


def _means(losses: Mapping[int, float], width: int) -> dict[int, tuple[int, float]]:
    """Stretch -> its last step that was told, and the mean loss; steps count from 1."""
    stretches: dict[int, dict[int, float]] = {}
    for step, loss in losses.items():
        stretches.setdefault(max(0, step - 1) // width, {})[step] = loss
    return {place: (max(found), fmean(found.values())) for place, found in sorted(stretches.items())}


def _table(means: Mapping[str, Mapping[int, tuple[int, float]]], width: int) -> Table:
    places = sorted({place for each in means.values() for place in each})
    rows = tuple(
        (
            _steps(place * width + 1, (place + 1) * width),
            tuple(Cell(f"{each[place][1]:.3f}") if place in each else NOTHING for each in means.values()),
        )
        for place in places
    )
    return Table("Training loss in nats per token", "steps", tuple(means), rows)


def _steps(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _width(last: int) -> int:
    """Steps of one stretch: 1, 2 or 5 times a power of ten, the smallest with which `ROWS` reach the last step."""
    power: int = 10 ** max(0, math.floor(math.log10(max(1, last / ROWS))))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * ROWS >= last)
