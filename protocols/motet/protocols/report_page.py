"""The page of a composite from what its owners returned: sums only, so that nobody has to see a text.

page = page_of({"public": Column(rows=public), "law": Column(rows=report.rows, diagnostics=report.diagnostics)})
page.html(); page.routing["law"]
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from motet.protocols.contribution import Score
from motet.protocols.evaluation import AVERAGE, Evaluation, gap_closed, leave_one_out, opt_outs, reliability, shapley
from motet.protocols.evaluation.diagnosis import Diagnostics, merged
from motet.protocols.evaluation.positions import Bucket
from motet.protocols.evaluation.reliability import Histogram, Reliability
from motet.protocols.evaluation.shares import MAX_EXPERTS, subsets
from motet.protocols.report import row_names, row_of_set

NORMAL = 1.959964
"""A normal variable lies within so many standard deviations 95 % of the time."""
INTERVALS = "Intervals are 95 %, normal around the figure, with the variance of each owner's document bootstrap."

Cells = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """What was measured on one domain's text."""

    rows: Mapping[str, Score]
    diagnostics: Diagnostics | None = None


def page_of(
    columns: Mapping[str, Column], members: Sequence[str], *, title: str = "Evaluation", notes: Sequence[str] = ()
) -> Evaluation:
    """The page over all columns, public text and every owner's; a section that was not measured stays empty.

    What a domain tells of other gates than the first one does is left out, and a note says so.

    Args:
        columns: domain -> what was measured on it.
        members: the composite's experts; each is also the name of its owner's domain.
        title, notes: of the page.
    """
    rows = row_names(tuple(members))
    bits = {row: {domain: column.rows[row].bits_per_byte for domain, column in columns.items()} for row in rows}
    systems = {row: {**cells, AVERAGE: sum(cells.values()) / len(cells)} for row, cells in bits.items()}
    measured = [name for name in members if name in columns]
    told, strange = _told(columns, members)
    return Evaluation(
        title=title,
        notes=(INTERVALS, *notes, *strange),
        systems=systems,
        intervals={row: _intervals(systems[row], columns, row) for row in rows},
        gap_closed=_gaps(systems, measured),
        opt_out=opt_outs(systems, experts=members),
        routing=routing_of(told),
        entropy=entropy_of(told),
        calibration=_calibration(told, measured),
        calibration_error=_calibration_errors(told, measured),
        positions={domain: _positions(found) for domain, found in told.items()},
        shapley=_shapley(columns, members),
        leave_one_out=_leave_one_out(columns, members),
    )


def page_of_own(domain: str, diagnostics: Diagnostics) -> Evaluation:
    """The page of what the gate does with one text, and of the loss by position in it."""
    told = {domain: diagnostics}
    positions = {domain: _positions(diagnostics)} if diagnostics.positions else {}
    return Evaluation(routing=routing_of(told), entropy=entropy_of(told), positions=positions)


def routing_of(told: Mapping[str, Diagnostics]) -> dict[str, tuple[dict[str, float], ...]]:
    """Domain -> layer by layer: expert -> mean gate mass."""
    return {
        domain: tuple({name: mass / found.tokens for name, mass in layer.mass.items()} for layer in found.layers)
        for domain, found in told.items()
        if found.layers
    }


def entropy_of(told: Mapping[str, Diagnostics]) -> dict[str, tuple[float, ...]]:
    """Domain -> layer by layer: mean entropy in nats."""
    return {domain: tuple(layer.entropy / found.tokens for layer in found.layers) for domain, found in told.items()}


def _told(columns: Mapping[str, Column], members: Sequence[str]) -> tuple[dict[str, Diagnostics], list[str]]:
    """Domain -> what was told of its text, and a note on each that does not fit; the first says how many layers."""
    told = {domain: column.diagnostics for domain, column in columns.items() if column.diagnostics is not None}
    layers = next((len(found.layers) for found in told.values()), 0)
    notes = []
    for domain, found in list(told.items()):
        rows = ("anchor", f"expert:{domain}", "composite")
        if problem := found.problem({"anchor", *members}, rows, layers=layers):
            notes.append(f"What {domain} told of its gates and positions is left out: saw {problem}.")
            del told[domain]
    return told, notes


def _intervals(cells: Mapping[str, float], columns: Mapping[str, Column], row: str) -> dict[str, tuple[float, float]]:
    """Domains are measured apart, so that the variance of their mean is the mean of variances over their number."""
    variance = {domain: column.rows[row].bits_per_byte_variance for domain, column in columns.items()}
    variance[AVERAGE] = sum(variance.values()) / len(variance) ** 2
    widths = {column: NORMAL * math.sqrt(variance[column]) for column in cells}
    return {column: (cells[column] - widths[column], cells[column] + widths[column]) for column in cells}


def _gaps(systems: Cells, measured: Sequence[str]) -> dict[str, dict[str, float | None]]:
    specialists = {name: systems[f"expert:{name}"][name] for name in measured}
    closed = {row: {name: cells[name] for name in measured} for row, cells in systems.items()}
    return gap_closed(closed, specialist=specialists) if measured else {}


def _positions(found: Diagnostics) -> dict[str, tuple[Bucket, ...]]:
    return {row: sums.buckets() for row, sums in found.positions.items()}


def _histograms(told: Mapping[str, Diagnostics], expert: str, layers: slice) -> dict[str, Histogram]:
    """Domain -> the expert's histogram over these layers together."""
    return {
        domain: merged(layer.histograms[expert] for layer in found.layers[layers])
        for domain, found in told.items()
        if found.layers[layers]
    }


def _calibration(told: Mapping[str, Diagnostics], measured: Sequence[str]) -> dict[str, Reliability]:
    """Only of experts whose own domain is told, and only where there is another domain."""
    known = [name for name in measured if name in told and told[name].layers and len(told) > 1]
    return {name: reliability(name, _histograms(told, name, slice(None))) for name in known}


def _calibration_errors(told: Mapping[str, Diagnostics], measured: Sequence[str]) -> dict[str, tuple[float, ...]]:
    return {
        name: tuple(
            reliability(name, _histograms(told, name, slice(layer, layer + 1))).error
            for layer in range(len(told[name].layers))
        )
        for name in _calibration(told, measured)
    }


def _shapley(columns: Mapping[str, Column], members: Sequence[str]) -> Cells:
    """Only where every owner has scored every set; the value of an average is the average of values."""
    if not 0 < len(members) <= MAX_EXPERTS:
        return {}
    named = {chosen: row_of_set(chosen, members) for chosen in subsets(members)}
    if not all(row in column.rows for column in columns.values() for row in named.values()):
        return {}
    return _with_average(
        {
            domain: shapley({chosen: -column.rows[row].bits_per_byte for chosen, row in named.items()})
            for domain, column in columns.items()
        }
    )


def _leave_one_out(columns: Mapping[str, Column], members: Sequence[str]) -> Cells:
    if not members:
        return {}
    everyone = frozenset(members)
    named = {chosen: row_of_set(chosen, members) for chosen in (everyone, *(everyone - {name} for name in members))}
    return _with_average(
        {
            domain: leave_one_out({chosen: -column.rows[row].bits_per_byte for chosen, row in named.items()})
            for domain, column in columns.items()
        }
    )


def _with_average(shares: Cells) -> Cells:
    """Domain -> expert -> share, turned round, with the average over domains."""
    turned = {expert: {domain: shares[domain][expert] for domain in shares} for expert in next(iter(shares.values()))}
    return {expert: {**row, AVERAGE: sum(row.values()) / len(row)} for expert, row in turned.items()}
