"""How the demonstration shows itself while it runs: bars on a terminal, plain lines elsewhere; always on stderr.

with view_of(sys.stderr) as view:
    view.step("starting")
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

SHOWN = ("train", "evaluate")
"""Phases in which owners have something to do."""


@contextmanager
def view_of(stream: TextIO) -> Iterator["Bars | Lines"]:
    """The view that fits the stream."""
    if not stream.isatty():
        yield Lines(stream)
        return
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as progress:
        yield Bars(progress)


class Lines:
    """A line per step, and one whenever an owner's job changes its state or another quarter of it is done."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told: dict[str, tuple[str, str, int]] = {}

    def step(self, line: str) -> None:
        """A new step has begun."""
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def owners(self, phase: str, owners: Sequence[dict[str, Any]]) -> None:
        """Tell what is new about the owners."""
        for owner in owners:
            if owner["job"] is None:
                continue
            through = owner["standing"] == "settled" and owner["job"] != "done"  # what came was quicker than its news
            said = "through" if through else f"{owner['job']}, {100 * owner['progress']:.0f} %  {owner['detail']}"
            now = (phase, "through" if through else owner["job"], int(4 * _share(owner)))
            if self._told.get(owner["name"]) != now:
                self._told[owner["name"]] = now
                self.step(f"{phase}: {owner['name']} {said}".rstrip())


class Bars:
    """A bar per owner and phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._phase = ""

    def step(self, line: str) -> None:
        """A new step has begun."""
        self._finish()
        self._progress.console.print(line)

    def owners(self, phase: str, owners: Sequence[dict[str, Any]]) -> None:
        """Move the bars; those of the phase before are over."""
        if phase != self._phase:
            self._finish()
            self._phase = phase
        if phase not in SHOWN:
            return
        for owner in owners:
            key = (phase, owner["name"])
            if key not in self._tasks:
                self._tasks[key] = self._progress.add_task(f"{phase} {owner['name']}", total=1.0, detail="")
            self._progress.update(self._tasks[key], completed=_share(owner), detail=owner["detail"][:60])

    def _finish(self) -> None:
        for task in self._tasks.values():
            self._progress.update(task, completed=1.0, detail="")
        self._tasks.clear()


def _share(owner: Mapping[str, Any]) -> float:
    """How much of the phase is done: all of it where the coordinator has what it wants, whatever was heard last."""
    return 1.0 if owner["standing"] == "settled" else float(owner["progress"])
