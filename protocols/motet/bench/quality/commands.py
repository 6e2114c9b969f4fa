"""The sub-command `motet bench quality`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from motet.protocols.output import Json, note, show

if TYPE_CHECKING:
    from motet.bench.quality.operations import Found, Outlook

Config = Annotated[Path, typer.Option("--config", help="What to measure, in TOML; docs/quality.md lists every key.")]
Corpora = Annotated[
    Path | None, typer.Option(help="The folder that the corpora are named from; the configuration's own if not given.")
]
CacheFolder = Annotated[
    Path, typer.Option("--cache", help="Where finished stages are kept; the same folder serves every configuration.")
]
Seeds = Annotated[
    int | None, typer.Option(min=1, help="How often all is done; as the configuration says if not given.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes at work at once, one thread each; as many as cores if not given.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="List the stages, those that are cached, and the time; do none.")
]
Out = Annotated[Path | None, typer.Option(help="Write results.json, results.md and results.html into this folder too.")]


def quality(
    config: Config,
    corpora: Corpora = None,
    cache: CacheFolder = Path("motet-quality"),
    seeds: Seeds = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure whether the composite is worth having: against the anchor, specialists and every merging baseline.

    Trains an anchor on public text, and experts and baselines of the same budget
    on the corpora of the configuration; chooses settings on validation documents
    and reports bits per byte on others, domain by domain, the mean over seeds,
    with 95 % intervals over documents and seeds. Averages include public text.
    "Gap closed" is (anchor - system) / (anchor - specialist). What is complete
    is kept: run the same command again after an interruption or a failure.
    """
    from motet.bench.quality.config import Files, QualityConfig
    from motet.bench.quality.operations import measure, outlook
    from motet.bench.quality.plan import plan

    chosen = QualityConfig.from_toml(config)
    files = Files.of(chosen, corpora or config.parent)
    planned, hands = plan(chosen, seeds or chosen.seeds, files), workers or _cores()
    if dry_run:
        seen = outlook(planned, cache=cache, workers=hands)
        show(seen.as_json(), as_json=as_json, lines=_outlook_lines(seen))
        return
    found = measure(chosen, planned, files, cache=cache, workers=hands, tell=note)
    for path in found.write(out) if out is not None else ():
        note(f"wrote {path}")
    show(found.as_json(), as_json=as_json, lines=_lines(found))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _outlook_lines(seen: "Outlook") -> Iterator[str]:
    from motet.bench.quality.pace import duration

    for stage, cached in seen.stages:
        yield f"{'cached ' if cached else 'missing'}  {stage.label}"
    yield f"{seen.missing} of {len(seen.stages)} stages to do, about {duration(seen.seconds)}"


def _lines(found: "Found") -> Iterator[str]:
    from motet.bench.quality.pace import duration

    yield from found.results.table()
    yield ""
    for point in found.results.ranks:
        kept = "-" if point.gain_kept is None else f"{point.gain_kept:.0%}"
        yield f"{point.system}: {point.parameters:,} parameters an expert ({point.share:.0%}), {kept} of full's gain"
    for each in found.results.comparisons:
        if "average" in each.relative:
            mean, low, high = each.relative["average"]
            yield f"{each.a} v {each.b}: {mean:+.1%} ({low:+.1%} to {high:+.1%})"
    yield f"{found.config.name}, {found.seeds} seeds, {duration(found.seconds)}"
