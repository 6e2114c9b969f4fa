"""The sub-command `motet harness`. It lies outside its room because importing anything of `motet.moe` loads torch."""

import os
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from motet.protocols.output import Json, show

if TYPE_CHECKING:
    from motet.moe.harness import HarnessReport, TaskResult

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
_NO_BARS = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS")
_HEAD = ("task", "metric", "value", "stderr", "documents")

Names = list[str] | None


def register(app: typer.Typer) -> None:
    """Add the sub-command to the command line."""
    app.command()(harness)


def harness(
    composite: Annotated[Path, typer.Argument(metavar="COMPOSITE", help="The composite's folder.")],
    tasks: Annotated[list[str], typer.Option(help="A task, a group or a tag; again for more.")],
    include_path: Annotated[
        Path | None,
        typer.Option(
            help="A folder of task files; paths in them start from it. The harness's own tasks if not given, whose "
            "data must be on this machine."
        ),
    ] = None,
    experts: Annotated[Names, typer.Option(help="An expert that takes part; again for more; all if not given.")] = None,
    without: Annotated[Names, typer.Option(help="An expert that does not; again for more.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each task at most; all if not given.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts by the anchor's chat template, as to an instruct model.")
    ] = False,
    anchor_too: Annotated[
        bool, typer.Option("--anchor-too", help="Score the anchor alone as well, to see what the experts change.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Keep the results here too, as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Score a composite on tasks of EleutherAI's lm-evaluation-harness, without the network."""
    _set_environment()
    import lm_eval  # type: ignore[import-untyped]  # noqa: F401 - first, so that its extra is named if it is missing

    from motet.moe.config import ANCHOR
    from motet.moe.harness import run_harness
    from motet.protocols.canonical import write_atomically

    run = partial(run_harness, composite, tasks, task_files=include_path, limit=limit, chat=chat)
    report = run(experts=experts or (), excluded=without or ())
    if anchor_too:
        report = report.model_copy(update={"anchor": run(experts=(ANCHOR,)).tasks})
    if out is not None:
        write_atomically(out, report.model_dump_json(indent=2).encode() + b"\n")
    show(report.model_dump(mode="json"), as_json=as_json, lines=_lines(report))


def _set_environment() -> None:
    """What the harness's libraries read when they are imported: no network, and no bars in a file."""
    settings = _OFFLINE if sys.stderr.isatty() else _OFFLINE + _NO_BARS
    os.environ.update(dict.fromkeys(settings, "1"))


def _lines(report: "HarnessReport") -> Iterator[str]:
    yield f"composite  {report.composite}"
    if report.chat:
        yield "prompts    by the anchor's chat template"
    yield f"experts    {', '.join(report.experts)}"
    yield from _table(report.tasks)
    if report.anchor is not None:
        yield from ("", "experts    anchor", *_table(report.anchor))


def _table(tasks: Mapping[str, "TaskResult"]) -> Iterator[str]:
    table = [_HEAD, *_rows(tasks)]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEAD))]
    for row in table:
        cells = (cell.ljust(widths[at]) if at < 2 else cell.rjust(widths[at]) for at, cell in enumerate(row))
        yield "  ".join(cells).rstrip()


def _rows(tasks: Mapping[str, "TaskResult"]) -> Iterator[tuple[str, ...]]:
    for task, result in tasks.items():
        documents = "" if result.documents is None else str(result.documents)
        for metric, value in result.metrics.items():
            name, _, chosen = metric.partition(",")
            if not name.endswith("_stderr"):
                error = result.metrics.get(f"{name}_stderr" + (f",{chosen}" if chosen else ""))
                yield task, metric, f"{value:.4f}", "" if error is None else f"{error:.4f}", documents
