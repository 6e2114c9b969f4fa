"""Training losses as owners told them, one after another, while somebody watched.

Guarantees: at most `MOST` points of each owner, in memory alone; a line that tells no loss adds none, and a new run
begins anew.

    losses = Losses()
    losses.note(read_run(home))
    losses.curve(owner).points                     # where to draw them
"""

import re
from dataclasses import dataclass

from motet.coordinator.run_record import RunState

MOST = 240
WIDTH, HEIGHT = 160.0, 32.0
_TOLD = re.compile(r"\bstep (\d{1,9}) of \d{1,9}, loss (\d{1,6}(?:\.\d{1,6})?)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A small line: `points` as SVG wants them in `WIDTH` x `HEIGHT`, the first and the last loss in nats per token."""

    points: str
    first: float
    last: float


class Losses:
    """The losses of one run."""

    def __init__(self) -> None:
        self._run: str | None = None
        self._told: dict[str, dict[int, float]] = {}

    def note(self, run: RunState | None) -> None:
        """Take in what the owners tell now."""
        if run is None:
            return
        if run.run != self._run:
            self._run, self._told = run.run, {}
        for owner, progress in run.owners.items():
            if found := _TOLD.search(progress.detail):
                self._add(owner, int(found[1]), float(found[2]))

    def curve(self, owner: str) -> Curve | None:
        """The line so far; None before there are two points."""
        told = self._told.get(owner, {})
        if len(told) < 2:
            return None
        steps, values = list(told), list(told.values())
        low, high = min(values), max(values)
        span, rise = max(1, steps[-1] - steps[0]), max(high - low, 1e-9)
        points = " ".join(
            f"{WIDTH * (step - steps[0]) / span:.1f},{HEIGHT * (high - value) / rise:.1f}"
            for step, value in told.items()
        )
        return Curve(points=points, first=values[0], last=values[-1])

    def _add(self, owner: str, step: int, loss: float) -> None:
        told = self._told.setdefault(owner, {})
        if told and step < next(reversed(told)):
            told.clear()  # it began anew
        told[step] = loss
        if len(told) > MOST:
            for old in list(told)[1:-1:2]:
                del told[old]
