"""Tables of text, before they become Markdown or HTML: what is shown of each section, and how strongly it is shaded.

table = bits_per_byte_table(page.systems, page.intervals)
table.rows[0]                  # ("anchor", (Cell(text="1.536", detail="1.50 to 1.57", heat=3), ...))
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from motet.protocols.evaluation.gaps import summary
from motet.protocols.evaluation.losses import AVERAGE
from motet.protocols.evaluation.positions import Bucket
from motet.protocols.evaluation.reliability import BINS, Reliability

if TYPE_CHECKING:
    from motet.protocols.evaluation.page import RankPoint

SHADES = 8
"""How many shades there are, beside none."""
MEAN, WORST, ENTROPY = "mean gap", "worst gap", "gate entropy"
"""Columns beside those of domains or experts; a name has no space, so that none is called so."""
Figures = Mapping[str, Mapping[str, float]]
"""Row -> column -> figure."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure, as it is printed."""

    text: str
    detail: str = ""
    """What belongs to it in small print, such as its interval."""
    heat: int = 0
    """How strongly it is shaded, 0 to `SHADES`."""


NOTHING = Cell("-")


@dataclass(frozen=True, slots=True)
class Table:
    """Figures under one caption."""

    caption: str
    corner: str
    """What the rows are."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def bits_per_byte_table(systems: Figures, intervals: Mapping[str, Mapping[str, tuple[float, float]]]) -> Table:
    """System x domain, shaded column by column: the darker, the worse."""
    columns = columns_of(systems.values())
    seen = {column: [row[column] for row in systems.values() if column in row] for column in columns}

    def cell(system: str, column: str) -> Cell:
        value, ends = systems[system].get(column), intervals.get(system, {}).get(column)
        if value is None:
            return NOTHING
        return Cell(
            f"{value:.3f}", "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}", shade(value, seen[column])
        )

    return _table("Bits per byte by system and domain", "system", systems, columns, cell)


def gap_table(gaps: Mapping[str, Mapping[str, float | None]]) -> Table:
    """System x closed domain in per cent, with mean and worst; the darker, the better."""
    closed: dict[str, dict[str, float | None]] = {}
    for system, row in gaps.items():
        gap = summary(row)
        closed[system] = {**row, MEAN: None, WORST: None} if gap is None else {**row, MEAN: gap.mean, WORST: gap.worst}
    columns = (*columns_of(gaps.values()), MEAN, WORST)

    def cell(system: str, column: str) -> Cell:
        value = closed[system].get(column)
        return NOTHING if value is None else Cell(f"{value:.1%}", heat=shade(value, (0, 1)))

    return _table("Gap closed by system and domain", "system", gaps, columns, cell)


def difference_table(relative: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Table:
    """Comparison x domain in per cent, with intervals; says where nought lies inside."""

    def cell(pair: str, column: str) -> Cell:
        if column not in relative[pair]:
            return NOTHING
        mean, low, high = relative[pair][column]
        inside = ", includes zero" if low <= 0 <= high else ""
        return Cell(f"{mean:+.2%}", f"{low:+.2%} to {high:+.2%}{inside}")

    columns = columns_of(relative.values())
    return _table("Relative difference by comparison and domain", "comparison", relative, columns, cell)


def rank_table(points: Sequence["RankPoint"]) -> Table:
    """System x rank, size and worth; the darker, the better."""
    columns = ("rank", "parameters", "share", "bits per byte", MEAN, WORST, "gain kept")
    by_name = {point.system: point for point in points}

    def percent(value: float | None) -> Cell:
        return NOTHING if value is None else Cell(f"{value:.1%}", heat=shade(value, (0, 1)))

    def cell(system: str, column: str) -> Cell:
        point = by_name[system]
        match column:
            case "rank":
                return Cell("full" if point.rank is None else str(point.rank))
            case "parameters":
                return Cell(f"{point.parameters:,}")
            case "share":
                return Cell(f"{point.share:.1%}")
            case "bits per byte":
                return Cell(f"{point.average:.3f}")
            case "gain kept":
                return percent(point.gain_kept)
            case _:
                return percent(point.gap_mean if column == MEAN else point.gap_worst)

    return _table("Low-rank experts by system", "system", by_name, columns, cell)


def opt_out_table(change: Figures, own_over_anchor: Mapping[str, float | None]) -> Table:
    """Expert left out x domain in per cent; the darker, the dearer, full at a loss of 10 %."""
    last = "own over anchor"

    def cell(expert: str, column: str) -> Cell:
        value = own_over_anchor[expert] if column == last else change[expert].get(column)
        return NOTHING if value is None else Cell(f"{value:+.2%}", heat=shade(value, (0, 0.1)))

    columns = (*columns_of(change.values()), last)
    return _table("Change in bits per byte when an expert is left out", "left out", change, columns, cell)


def routing_table(layer: str, mass: Figures, entropy: Mapping[str, float]) -> Table:
    """Text x expert: mean gate mass in per cent, and the gate's entropy."""

    def cell(domain: str, column: str) -> Cell:
        if column == ENTROPY:
            return Cell(f"{entropy[domain]:.2f} nats") if domain in entropy else NOTHING
        value = mass[domain].get(column)
        return NOTHING if value is None else Cell(f"{value:.1%}", heat=shade(value, (0, 1)))

    columns = (*columns_of(mass.values()), ENTROPY)
    return _table(f"Mean gate mass by text and expert, {layer}", "text", mass, columns, cell)


def reliability_table(found: Mapping[str, Reliability]) -> Table:
    """Bin x expert: what came true in per cent, and what was predicted."""
    spans = tuple(f"{place / BINS:.0%} to {(place + 1) / BINS:.0%}" for place in range(BINS))
    bins = {
        expert: {spans[min(int(row.predicted * BINS), BINS - 1)]: row for row in one.rows}
        for expert, one in found.items()
    }

    def cell(mass: str, expert: str) -> Cell:
        row = bins[expert].get(mass)
        return NOTHING if row is None else Cell(f"{row.right:.1%}", f"of {row.tokens:,}, predicted {row.predicted:.1%}")

    return _table(
        "Share of tokens that are the expert's own, by gate mass and expert", "mass", spans, tuple(found), cell
    )


def error_table(found: Mapping[str, Reliability], layers: Mapping[str, Sequence[float]]) -> Table:
    """Expert x layer: expected calibration error."""
    depth = max((len(errors) for errors in layers.values()), default=0)
    names = tuple(f"layer {layer}" for layer in range(depth))

    def cell(expert: str, column: str) -> Cell:
        errors = dict(zip(names, layers.get(expert, ()), strict=False))
        value = found[expert].error if column == "all" else errors.get(column)
        return NOTHING if value is None else Cell(f"{value:.3f}", heat=shade(value, (0, 0.5)))

    return _table("Expected calibration error by expert and layer", "expert", found, ("all", *names), cell)


def position_table(domain: str, found: Mapping[str, Sequence[Bucket]]) -> Table:
    """System x position: bits per token."""
    columns = tuple(span(bucket) for bucket in max(found.values(), key=len))
    bits = {system: {span(bucket): bucket for bucket in buckets} for system, buckets in found.items()}

    def cell(system: str, column: str) -> Cell:
        bucket = bits[system].get(column)
        return NOTHING if bucket is None else Cell(f"{bucket.bits_per_token:.2f}", f"{bucket.tokens:,} tokens")

    return _table(f"Bits per token by system and tokens before, {domain}", "system", found, columns, cell)


def share_table(caption: str, shares: Figures) -> Table:
    """Expert x domain: bits per byte."""
    largest = max((value for row in shares.values() for value in row.values()), default=0.0)

    def cell(expert: str, column: str) -> Cell:
        value = shares[expert].get(column)
        return NOTHING if value is None else Cell(f"{value:+.3f}", heat=shade(value, (0, largest)))

    return _table(caption, "expert", shares, columns_of(shares.values()), cell)


def columns_of(rows: Iterable[Mapping[str, object]]) -> tuple[str, ...]:
    """Every column of some row, in the order in which they come, the average last."""
    columns = dict.fromkeys(column for row in rows for column in row)
    average = (AVERAGE,) if AVERAGE in columns else ()
    return (*(column for column in columns if column != AVERAGE), *average)


def span(bucket: Bucket) -> str:
    """How a bucket is headed: the tokens before."""
    return f"{bucket.first} to {bucket.last}"


def shade(value: float, seen: Sequence[float]) -> int:
    """How strongly a value is shaded among those seen, 0 to `SHADES`; values beyond them as the nearest."""
    low, high = min(seen), max(seen)
    return 0 if high <= low else round(SHADES * min(1.0, max(0.0, (value - low) / (high - low))))


def _table(
    caption: str, corner: str, rows: Iterable[str], columns: Sequence[str], cell: Callable[[str, str], Cell]
) -> Table:
    return Table(caption, corner, tuple(columns), tuple((row, tuple(cell(row, c) for c in columns)) for row in rows))
