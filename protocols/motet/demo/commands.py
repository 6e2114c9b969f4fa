"""The sub-command `motet demo`."""

import json
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from motet.protocols.errors import ConfigurationError
from motet.protocols.output import Json, show
from motet.protocols.report import Report

MARKER = ".motet-demo"
_ENDING = (signal.SIGINT, signal.SIGTERM)
_COMPOSITES = ("composites", "composites-stock")


def register(app: typer.Typer) -> None:
    """Add this room's sub-command to the command line."""
    app.command()(demo)


def demo(
    directory: Annotated[
        Path, typer.Option("--dir", help="Where everything lies; what an earlier demo left there is replaced.")
    ] = Path("motet-demo"),
    as_json: Json = False,
    keep: Annotated[bool, typer.Option(help="Keep the homes with keys, text statistics and ledger too.")] = False,
) -> None:
    """Run a whole federation on this machine: three owners, a coordinator, real Flower and gRPC connections."""
    from motet.demo import quickstart
    from motet.demo.play import play
    from motet.demo.view import view_of

    folder = directory.absolute()
    _make_room(folder)
    for number in _ENDING:
        signal.signal(number, _interrupt)
    try:
        with view_of(sys.stderr) as view:
            report = play(folder, view, quickstart.cast())
    finally:
        if not keep:
            _clear(folder)
    show(json.loads(report.canonical()), as_json=as_json, lines=[*summary(report), "", *_next_steps(folder, keep)])


def _next_steps(folder: Path, kept: bool) -> list[str]:
    """What the reader may do with what is there."""
    load = 'Next: load the composite (README, "Use a composite")'
    if kept:
        return [f"{load}, or: motet report --dir {folder / 'coordinator'}"]
    return [f"{load}; with --keep the homes stay for motet report, assemble, eval and doctor"]


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does; clearing up takes seconds at most, and a second signal must not cut it short."""
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def summary(report: Report) -> list[str]:
    """What the demonstration ends with."""
    composite, seconds = report.composite, report.seconds
    samples = [
        line
        for sample in sorted(report.samples, key=lambda sample: sample.expert)
        for line in (
            f"  with {sample.expert:<16} {sample.with_expert}",
            f"  without {sample.expert:<13} {sample.without_expert}",
        )
    ]
    phases = ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.items() if name != "total")
    return [
        "Bits per byte on held-out text (lower is better)",
        *report.table(),
        "",
        "Generated",
        *samples,
        "",
        "Bytes on the wire",
        *(f"  {line}" for line in report.wire_table()),
        "",
        f"Composite  {composite.path}",
        f"Stock      {composite.stock_path}",
        f"Seconds    {seconds.get('total', 0):.0f} ({phases})",
    ]


def _make_room(folder: Path) -> None:
    """An empty folder with a marker; one that holds something else than an earlier demo is left alone."""
    if folder.exists():
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARKER).exists()):
            raise ConfigurationError(f"{folder} holds something that is no demo; name another folder with --dir")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def _clear(folder: Path) -> None:
    """Leave report, logs and composites; keys, spools and checkpoints go."""
    shutil.rmtree(folder / "owners", ignore_errors=True)
    for path in (folder / "coordinator").glob("*"):
        if path.name in _COMPOSITES:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
