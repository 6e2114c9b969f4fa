"""Charts as numbers: where every bar, point and tick lies, so that the template only draws.

Guarantees: everything lies inside the chart's `width` x `height`; series differ by dash and marker as well as by
colour, and every value is in a table beside the chart.

    chart = bar_chart("Bits per byte", [Bar("anchor", 3.47, (3.40, 3.55)), ...])
    chart.bars[0].x
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from motet.protocols.evaluation.positions import Bucket
from motet.protocols.evaluation.reliability import Reliability

LETTER, VALUES = 7.0, 60.0
"""Room for each letter of the names to the left of bars, and for figures to the right of them."""
BAR, BARS = 22.0, 420.0
"""The height of a bar with its gap, and the width of the longest."""
PLOT, MARGIN, EDGE, LEGEND = 280.0, 46.0, 18.0, 190.0
"""Line charts: the side of the plot, the room for ticks, the room opposite them, that for the names of series."""
STYLES = 6
"""How many dashes and markers there are."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure to draw, and its interval."""

    label: str
    value: float
    ends: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class DrawnBar:
    """Where a bar lies."""

    label: str
    text: str
    y: float
    width: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class BarChart:
    """Bars from the left, each with a name and a figure."""

    title: str
    width: float
    height: float
    left: float
    """Where bars begin."""
    bars: tuple[DrawnBar, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of the grid."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Series:
    """A line through points."""

    label: str
    style: int
    """Which dash and marker, 0 to `STYLES` - 1."""
    points: tuple[tuple[float, float], ...]
    legend: float
    """The height of its name in the legend."""


@dataclass(frozen=True, slots=True)
class LineChart:
    """Lines over a grid."""

    title: str
    x_label: str
    y_label: str
    width: float
    height: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...]
    diagonal: bool = field(default=False)


Chart = BarChart | LineChart


def bar_chart(title: str, bars: Sequence[Bar]) -> BarChart:
    """Bars that all begin at nought, with whiskers where there are intervals."""
    longest = max((max(bar.value, *(bar.ends or ())) if bar.ends else bar.value for bar in bars), default=1.0)
    scale = BARS / longest if longest > 0 else 0.0
    left = 10 + LETTER * max((len(bar.label) for bar in bars), default=0)
    drawn = tuple(
        DrawnBar(
            label=bar.label,
            text=f"{bar.value:.3f}",
            y=BAR * place,
            width=_rounded(max(0.0, scale * bar.value)),
            low=None if bar.ends is None else _rounded(left + scale * bar.ends[0]),
            high=None if bar.ends is None else _rounded(left + scale * bar.ends[1]),
        )
        for place, bar in enumerate(bars)
    )
    return BarChart(title, left + BARS + VALUES, BAR * len(bars), left, drawn)


def reliability_chart(expert: str, found: Reliability) -> LineChart:
    """What came true against what was predicted; on the diagonal the gate is calibrated."""
    points = [(row.predicted, row.right) for row in found.rows]
    ticks = [(place / 4, f"{place / 4:.0%}") for place in range(5)]
    return _line_chart(
        (f"Calibration of {expert}", "mean predicted mass", "share its own"),
        {expert: points},
        x_ticks=ticks,
        y_ticks=ticks,
        diagonal=True,
    )


def position_chart(domain: str, found: Mapping[str, Sequence[Bucket]]) -> LineChart:
    """Bits per token against the tokens before, each doubling as wide as the next."""
    longest = max(found.values(), key=len)
    last = max(1, len(longest) - 1)
    place = {bucket.first: number / last for number, bucket in enumerate(longest)}
    top = max((bucket.bits_per_token for buckets in found.values() for bucket in buckets), default=1.0)
    step = _step(top)
    high = step * max(1, math.ceil(top / step))
    lines = {
        system: [(place[bucket.first], bucket.bits_per_token / high) for bucket in buckets if bucket.first in place]
        for system, buckets in found.items()
    }
    return _line_chart(
        (f"Loss by position, {domain}", "tokens before", "bits per token"),
        lines,
        x_ticks=[(at, str(first)) for first, at in place.items()],
        y_ticks=[(number * step / high, f"{number * step:g}") for number in range(round(high / step) + 1)],
    )


def rank_chart(lines: Mapping[str, Mapping[int, float]], full: float | None) -> LineChart:
    """Gap closed against the rank, each tick twice the one before at the least; `full` is what full experts close."""
    ranks = sorted({rank for points in lines.values() for rank in points})
    first, span = math.log2(ranks[0]), max(1.0, math.log2(ranks[-1] / ranks[0]))
    place = {rank: (math.log2(rank) - first) / span for rank in ranks}
    drawn = {
        name: [(place[rank], min(1.0, max(0.0, points[rank]))) for rank in sorted(points)]
        for name, points in lines.items()
    }
    if full is not None:
        drawn["full"] = [(at, min(1.0, max(0.0, full))) for at in (0.0, 1.0)]
    return _line_chart(
        ("Gap closed by rank", "rank", "mean gap closed"),
        drawn,
        x_ticks=[(at, str(rank)) for rank, at in place.items()],
        y_ticks=[(place / 4, f"{place / 4:.0%}") for place in range(5)],
    )


def loss_chart(lines: Mapping[str, Sequence[tuple[int, float]]]) -> LineChart:
    """Training losses in nats per token against the step; the heights begin at a round figure below the lowest."""
    steps, losses = ([point[place] for points in lines.values() for point in points] for place in (0, 1))
    across, up = max(1, round(_step(max(steps)))), _step(max(max(losses) - min(losses), 1e-3))
    right = across * max(1, math.ceil(max(steps) / across))
    low, high = math.floor(min(losses) / up), math.ceil(max(losses) / up)
    height = max(1, high - low)
    return _line_chart(
        ("Training loss by step", "step", "nats per token"),
        {name: [(step / right, (loss / up - low) / height) for step, loss in points] for name, points in lines.items()},
        x_ticks=[(at / right, f"{at:,}") for at in range(0, right + 1, across)],
        y_ticks=[(number / height, f"{(low + number) * up:g}") for number in range(height + 1)],
    )


def _line_chart(
    names: tuple[str, str, str],
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    diagonal: bool = False,
) -> LineChart:
    """`names` are title, x and y; points and ticks run from 0 to 1."""
    series = tuple(
        Series(label, number % STYLES, tuple((_x(x), _y(y)) for x, y in points), EDGE + 18 * number)
        for number, (label, points) in enumerate(lines.items())
    )
    return LineChart(
        *names,
        width=MARGIN + PLOT + EDGE + (0 if diagonal else LEGEND),
        height=EDGE + PLOT + MARGIN,
        x_ticks=tuple(Tick(_x(at), label) for at, label in x_ticks),
        y_ticks=tuple(Tick(_y(at), label) for at, label in y_ticks),
        series=series,
        diagonal=diagonal,
    )


def _x(share: float) -> float:
    return _rounded(MARGIN + PLOT * share)


def _y(share: float) -> float:
    return _rounded(EDGE + PLOT * (1 - share))


def _rounded(value: float) -> float:
    return round(value, 1)


def _step(top: float) -> float:
    """A round step that divides what reaches `top` into about five: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(top, 1e-9) / 5))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5 >= top * (1 - 1e-9))
