"""The sub-command `motet bench composite`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from motet.protocols.output import Json, note, show

if TYPE_CHECKING:
    from motet.bench.composite import Report

Experts = Annotated[int, typer.Option(min=1, max=64, help="How many experts.")]
Rank = Annotated[int, typer.Option(min=1, help="The rank of their factors.")]


def composite(experts: Experts = 8, rank: Rank = 16, as_json: Json = False) -> None:
    """Measure what a composite of low-rank experts takes: memory beside the sum of its parts, speed beside dense ones.

    A random anchor (hidden size 512, 8 layers, intermediate size 2048, vocabulary
    8192, float32), alone, with low-rank experts, and with as many full ones.
    Each composite is loaded and run in a process of its own: 4 rows of 256 tokens,
    all experts taking part, without gradients, the median of seven rounds. Memory is
    what the process has grown by once it has loaded the composite and run it.
    """
    from motet.bench.composite import Settings, run_composite

    report = run_composite(Settings(experts=experts, rank=rank), tell=note)
    if not all(each.exact_memory for each in report.composites.values()):
        note("this system does not forget a peak of memory: peaks may count the start too")
    ratios = {"memory_ratio": report.memory_ratio, "cost": report.cost, "speedup": report.speedup}
    show(report.model_dump(mode="json") | ratios, as_json=as_json, lines=_lines(report))


def _lines(report: "Report") -> Iterator[str]:
    tokens = report.settings.batch * 256
    yield f"{'':<9}{'parts MB':>10}{'resident':>10}{'of parts':>10}{'peak':>10}{'tokens/s':>10}"
    for kind, each in report.composites.items():
        parts, resident = each.parts_bytes / 1e6, each.resident_bytes / 1e6
        yield (
            f"{kind:<9}{parts:>10.1f}{resident:>10.1f}{resident / parts:>10.3f}{each.peak_bytes / 1e6:>10.1f}"
            f"{tokens / each.seconds:>10,.0f}"
        )
    settings = report.settings
    yield (
        f"{settings.experts} low-rank experts of rank {settings.rank} take {report.cost:.2f} times the anchor's time, "
        f"as many full ones {report.speedup:.1f} times theirs"
    )
