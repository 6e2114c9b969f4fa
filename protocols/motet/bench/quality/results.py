"""What the scores of all stages and seeds say together.

    measured = [merged([read_scores(folder) for folder in folders]) for folders in folders_of_each_seed]
    results = Results.of(measured)
    results.systems["composite:filter"]["average"], results.gap_closed["soup"]["medicine"]
    results.page(title="small", notes=[]).html()

A stage of scores leaves `scores.json`, one entry a document, the same documents in the same order for every system of a
domain; several stages may score the same system on different domains:

    {"split": "test", "systems": {SYSTEM: {DOMAIN: {"nats": [...], "bytes": [...]}}}, "settings": {SYSTEM: {...}}}

Variants are told by what follows a ":", "+", "@" or "/": "soup+public" is a soup. "composite:filter-without:NAME" is
`composite:filter` when NAME has opted out. The settings of "lowrank:8" tell the `parameters` of one expert and their
`share` of a full one's.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from motet.bench.quality.config import BASELINES, MERGING
from motet.protocols.documents import Strict, first_problem
from motet.protocols.errors import DataError
from motet.protocols.evaluation import (
    AVERAGE,
    DocumentLosses,
    Measured,
    difference,
    gap_closed,
    intervals,
    matrix,
    summary,
)
from motet.protocols.evaluation.page import Comparison, Evaluation, OptOut, RankPoint, opt_outs

SCORES = "scores.json"
COMPOSITES = ("composite:filter", "composite:token", "composite:embedding", "stock")
LOW_RANK = ("lowrank", "squeezed")
"""Systems of low-rank experts, `lowrank:8`; those of full ones are `FULL`."""
FULL = "composite:filter"
_ORDER = ("anchor", *BASELINES, "composite", *LOW_RANK, "stock")
_REFERENCES = (
    *("joint", "joint-equal", "oracle", "btm", "logit-average", "fedavg", "phatgoose", "composite:token", "anchor"),
)
"""What each composite is compared with, beside the best merging baseline."""


class Losses(Strict):
    """One system on one domain."""

    nats: tuple[float, ...]
    """Summed loss of each document, natural logarithm."""
    bytes: tuple[int, ...]
    """UTF-8 bytes of each document."""


class Scores(Strict):
    """What a stage of scores leaves."""

    split: Literal["validation", "test"]
    """Which documents: only `test` is reported."""
    systems: dict[str, dict[str, Losses]]
    """System -> domain -> losses."""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """System -> what validation documents chose for it."""


def read_scores(folder: Path) -> Scores:
    """The scores that a stage left in its folder.

    Raises:
        DataError: they are not as they should be.
    """
    path = folder / SCORES
    try:
        return Scores.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else error
        raise DataError(f"saw no scores in {path}: {problem}; wanted what motet.bench.quality.results says") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """What one seed measured."""

    measured: dict[str, dict[str, DocumentLosses]]
    settings: dict[str, dict[str, Any]]


def merged(scores: Iterable[Scores]) -> Seed:
    """The test scores of several stages, side by side.

    Raises:
        DataError: two stages say different things of one system and domain.
    """
    measured: dict[str, dict[str, Losses]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for each in (each for each in scores if each.split == "test"):
        for system, cells in each.systems.items():
            row = measured.setdefault(system, {})
            if clash := [domain for domain in cells if row.get(domain, cells[domain]) != cells[domain]]:
                raise DataError(f"saw {system} scored twice on {clash[0]}, differently; wanted one stage to do it")
            row |= cells
        for system, chosen in each.settings.items():
            settings.setdefault(system, {}).update(chosen)
    return Seed(measured={system: _as_arrays(measured[system]) for system in ordered(measured)}, settings=settings)


def _as_arrays(row: Mapping[str, Losses]) -> dict[str, DocumentLosses]:
    return {
        domain: DocumentLosses(np.array(cell.nats, np.float64), np.array(cell.bytes, np.int64))
        for domain, cell in row.items()
    }


def ordered(systems: Iterable[str]) -> list[str]:
    """The systems as they are shown: anchor, baselines, composites, and what else there is, as it comes."""
    return sorted(systems, key=lambda name: _ORDER.index(base(name)) if base(name) in _ORDER else len(_ORDER))


def base(system: str) -> str:
    """The system that a variant belongs to: soup for soup+public, composite for composite:filter."""
    return re.split(r"[:+@/]", system, maxsplit=1)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What is reported: bits per byte on test documents, the mean over seeds."""

    systems: dict[str, dict[str, float]]
    """System -> domain or "average" -> bits per byte."""
    intervals: dict[str, dict[str, tuple[float, float]]]
    """The same shape: low and high of the 95 % interval, seeds and documents drawn."""
    gap_closed: dict[str, dict[str, float | None]]
    """System -> closed domain -> fraction; empty without specialists, None where they gain nothing."""
    comparisons: tuple[Comparison, ...]
    """Each composite against what it must beat, paired."""
    opt_out: dict[str, OptOut]
    """Expert -> what leaving it out of the composite costs."""
    settings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """System -> what was chosen, seed by seed."""
    ranks: tuple[RankPoint, ...] = ()
    """Low-rank experts by how they were made and by rank, then full ones; empty if there are none."""

    @classmethod
    def of(cls, seeds: Sequence[Seed]) -> "Results":
        """From what each seed measured.

        Raises:
            DataError: seeds or systems were measured on different documents.
        """
        measured = [seed.measured for seed in seeds]
        systems = matrix(measured)
        names = dict.fromkeys(system for seed in seeds for system in seed.settings)
        composite = next((name for name in COMPOSITES if name in systems), "")
        gaps = gap_closed(systems) if "specialist" in systems else {}
        return cls(
            systems=systems,
            intervals=intervals(measured),
            gap_closed=gaps,
            ranks=tuple(_rank_points(systems, gaps, seeds[0].settings)) if seeds else (),
            comparisons=tuple(_comparisons(systems, measured)),
            opt_out=opt_outs(systems, composite=composite),
            settings={name: [seed.settings.get(name, {}) for seed in seeds] for name in ordered(names)},
        )

    def as_json(self) -> dict[str, Any]:
        """Everything as a JSON object."""
        gaps = {system: summary(row) for system, row in self.gap_closed.items()}
        return {
            "systems": self.systems,
            "intervals": {
                system: {at: list(ends) for at, ends in row.items()} for system, row in self.intervals.items()
            },
            "gap_closed": self.gap_closed,
            "gap": {system: {"mean": gap.mean, "worst": gap.worst} for system, gap in gaps.items() if gap is not None},
            "ranks": [each.model_dump(mode="json") for each in self.ranks],
            "comparisons": [each.model_dump(mode="json") for each in self.comparisons],
            "opt_out": {expert: each.model_dump(mode="json") for expert, each in self.opt_out.items()},
            "settings": self.settings,
        }

    def table(self) -> list[str]:
        """Bits per byte, and the gap closed on average and at worst, as lines of text."""
        columns = list(dict.fromkeys(column for row in self.systems.values() for column in row))
        columns.sort(key=lambda column: column == AVERAGE)
        lines = [["", *columns, "gap", "worst"]]
        for system, row in self.systems.items():
            gap = summary(self.gap_closed.get(system, {}))
            cells = [f"{row[column]:.3f}" if column in row else "-" for column in columns]
            lines.append([system, *cells, *(["-", "-"] if gap is None else [f"{gap.mean:.0%}", f"{gap.worst:.0%}"])])
        widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
        return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]

    def page(self, *, title: str, notes: Iterable[str], seeds: int, seconds: float) -> Evaluation:
        """The page of it all."""
        return Evaluation(
            title=title,
            notes=tuple(notes),
            systems=self.systems,
            intervals=self.intervals,
            gap_closed=self.gap_closed,
            ranks=self.ranks,
            comparisons=self.comparisons,
            opt_out=self.opt_out,
            seeds=seeds,
            seconds=seconds,
        )


def best_merging(systems: Mapping[str, Mapping[str, float]]) -> str | None:
    """The merging baseline with the lowest average, which the composite must beat; None if none was measured."""
    averages = {name: row[AVERAGE] for name, row in systems.items() if base(name) in MERGING and AVERAGE in row}
    return min(averages, key=lambda name: averages[name]) if averages else None


def _comparisons(systems: Mapping[str, Mapping[str, float]], measured: Sequence[Measured]) -> Iterable[Comparison]:
    best = best_merging(systems)
    pairs = [(ours, theirs) for ours in COMPOSITES for theirs in (*([best] if best else []), *_REFERENCES)]
    pairs += [(ours, FULL) for ours in systems if base(ours) in LOW_RANK]
    for ours, theirs in pairs:
        if ours in systems and theirs in systems and theirs != ours:
            pair = [{name: run[name] for name in (ours, theirs)} for run in measured]
            yield Comparison.of(ours, theirs, difference(pair, ours, theirs))


def _rank_points(
    systems: Mapping[str, Mapping[str, float]],
    gaps: Mapping[str, Mapping[str, float | None]],
    settings: Mapping[str, Mapping[str, Any]],
) -> Iterable[RankPoint]:
    found = [
        name for name in systems if base(name) in LOW_RANK and {"parameters", "share"} <= settings.get(name, {}).keys()
    ]
    found.sort(key=lambda name: (LOW_RANK.index(base(name)), _rank(name)))
    for name in found:
        told = settings[name]
        yield _rank_point(name, systems, gaps, rank=_rank(name), parameters=told["parameters"], share=told["share"])
    if found and FULL in systems:
        parameters = round(settings[found[0]]["parameters"] / settings[found[0]]["share"])
        yield _rank_point(FULL, systems, gaps, rank=None, parameters=parameters, share=1.0)


def _rank(system: str) -> int:
    return int(system.partition(":")[2])


def _rank_point(
    name: str,
    systems: Mapping[str, Mapping[str, float]],
    gaps: Mapping[str, Mapping[str, float | None]],
    **size: Any,  # noqa: ANN401 - fields of RankPoint
) -> RankPoint:
    anchor, full = (systems.get(each, {}).get(AVERAGE) for each in ("anchor", FULL))
    gain = anchor - full if anchor is not None and full is not None else 0.0
    own, gap = systems[name][AVERAGE], summary(gaps.get(name, {}))
    return RankPoint(
        system=name,
        average=own,
        gap_mean=None if gap is None else gap.mean,
        gap_worst=None if gap is None else gap.worst,
        gain_kept=(anchor - own) / gain if anchor is not None and gain > 0 else None,
        **size,
    )
