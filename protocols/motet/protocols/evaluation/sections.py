"""The page's sections in the order in which they are read: a question, what was measured, how to read it.

for section in sections(evaluation):
    section.title, section.note, section.tables, section.charts
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from motet.protocols.evaluation.charts import Bar, Chart, bar_chart, position_chart, rank_chart, reliability_chart
from motet.protocols.evaluation.tables import (
    Table,
    bits_per_byte_table,
    columns_of,
    difference_table,
    error_table,
    gap_table,
    opt_out_table,
    position_table,
    rank_table,
    reliability_table,
    routing_table,
    share_table,
)

if TYPE_CHECKING:
    from motet.protocols.evaluation.page import Evaluation

MATRIX = "Bits per byte"


@dataclass(frozen=True, slots=True)
class Section:
    """One question, and the figures that answer it."""

    title: str
    note: str
    """How to read the figures."""
    tables: tuple[Table, ...]
    charts: tuple[Chart, ...] = ()


def sections(page: "Evaluation") -> list[Section]:
    """The sections that have figures."""
    wanted: list[tuple[object, Callable[[Evaluation], Section]]] = [
        (page.systems, _bits_per_byte),
        (page.gap_closed, _gap_closed),
        (page.ranks, _ranks),
        (page.comparisons, _comparisons),
        (page.opt_out, _opting_out),
        (page.routing, _routing),
        (page.calibration, _calibration),
        (page.positions, _positions),
        (page.shapley or page.leave_one_out, _shares),
    ]
    return [make(page) for figures, make in wanted if figures]


def _bits_per_byte(page: "Evaluation") -> Section:
    last = columns_of(page.systems.values())[-1]
    bars = [
        Bar(system, row[last], page.intervals.get(system, {}).get(last))
        for system, row in page.systems.items()
        if last in row
    ]
    small = " Small print: 95 % interval." if page.intervals else ""
    return Section(
        MATRIX,
        f"Held-out text; lower is better; the darker, the worse in its column.{small}",
        (bits_per_byte_table(page.systems, page.intervals),),
        (bar_chart(f"Bits per byte, {last}", bars),),
    )


def _gap_closed(page: "Evaluation") -> Section:
    return Section(
        "Gap closed",
        "(anchor - system) / (anchor - specialist): 0 % is the anchor, 100 % the domain's own specialist. A dash: that "
        "specialist gains nothing, or nothing was measured.",
        (gap_table(page.gap_closed),),
    )


def _ranks(page: "Evaluation") -> Section:
    lines: dict[str, dict[int, float]] = {}
    for point in page.ranks:
        if point.rank is not None and point.gap_mean is not None:
            lines.setdefault(point.system.partition(":")[0], {})[point.rank] = point.gap_mean
    full = next((point.gap_mean for point in page.ranks if point.rank is None), None)
    return Section(
        "Low-rank experts",
        "Composites of low-rank experts, trained or squeezed out of full ones, beside the one of full experts. Share: "
        "an expert's parameters over a full one's. Gain kept: (anchor - system) / (anchor - full) of the averages.",
        (rank_table(page.ranks),),
        (rank_chart(lines, full),) if lines else (),
    )


def _comparisons(page: "Evaluation") -> Section:
    relative = {f"{one.a} against {one.b}": one.relative for one in page.comparisons}
    return Section(
        "Comparisons",
        "a / b - 1 on the same documents, below zero where the first is better; 95 % interval.",
        (difference_table(relative),),
    )


def _opting_out(page: "Evaluation") -> Section:
    change = {expert: one.change for expert, one in page.opt_out.items()}
    over = {expert: one.own_over_anchor for expert, one in page.opt_out.items()}
    return Section(
        "Opting out",
        "What leaving an expert out changes: the loss on its own domain, the harm to all others; last, its own domain "
        "without it against the anchor's.",
        (opt_out_table(change, over),),
    )


def _routing(page: "Evaluation") -> Section:
    depth = max(len(layers) for layers in page.routing.values())
    tables = []
    for layer in range(depth):
        mass = {domain: layers[layer] for domain, layers in page.routing.items() if layer < len(layers)}
        entropy = {domain: layers[layer] for domain, layers in page.entropy.items() if layer < len(layers)}
        tables.append(routing_table(f"layer {layer}", mass, entropy))
    note = "Whom the gate trusts with whose text: the mean over scored tokens, and how undecided it is."
    return Section("Routing", note, tuple(tables))


def _calibration(page: "Evaluation") -> Section:
    charts = tuple(reliability_chart(expert, found) for expert, found in page.calibration.items())
    return Section(
        "Calibration",
        "Of the tokens whose gate gives an expert a mass of 80 %, 80 % should be its own; every text weighs the same. "
        "All layers together, and the error layer by layer.",
        (error_table(page.calibration, page.calibration_error), reliability_table(page.calibration)),
        charts,
    )


def _positions(page: "Evaluation") -> Section:
    return Section(
        "Loss by position",
        "How fast each system finds its way into a text, by how many of its tokens it has seen.",
        tuple(position_table(domain, found) for domain, found in page.positions.items()),
        tuple(position_chart(domain, found) for domain, found in page.positions.items()),
    )


def _shares(page: "Evaluation") -> Section:
    named = {
        "Shapley value by expert and domain": page.shapley,
        "Leave-one-out value by expert and domain": page.leave_one_out,
    }
    return Section(
        "What each expert brings",
        "Bits per byte saved. The Shapley value is the mean over all orders of joining, and adds up to what all save "
        "together; leave-one-out is what is lost when only that expert goes.",
        tuple(share_table(caption, shares) for caption, shares in named.items() if shares),
    )
