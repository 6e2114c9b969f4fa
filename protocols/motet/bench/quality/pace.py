"""How long stages take: guessed from their weights, corrected by those that have run.

pace = Pace(cache.records())
pace.seconds(stage)
pace.note(kind, weight, seconds)                 # one has finished
pace.left(stages, workers=2)                     # a lower bound: the work shared out, or the longest chain in it
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from motet.bench.quality.cache import Record
from motet.bench.quality.stages import Stage


class Pace:
    """Seconds a weight, kind by kind."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        """Begin with what earlier runs noted."""
        self._weights: dict[str, float] = defaultdict(float)
        self._seconds: dict[str, float] = defaultdict(float)
        for record in records:
            self.note(record.kind, record.weight, record.seconds)

    def note(self, kind: str, weight: float, seconds: float) -> None:
        """A stage has run."""
        self._weights[kind] += weight
        self._seconds[kind] += seconds

    def seconds(self, stage: Stage) -> float:
        """How long a stage will take: by its kind, or else by all kinds, or else by its weight alone."""
        if weights := self._weights.get(stage.kind):
            return stage.weight * self._seconds[stage.kind] / weights
        if weights := sum(self._weights.values()):
            return stage.weight * sum(self._seconds.values()) / weights
        return stage.weight

    def left(self, stages: Sequence[Stage], *, workers: int, spent: Mapping[str, float] | None = None) -> float:
        """Seconds until all are done.

        Args:
            stages: those not done, each after its inputs.
            workers: how many are done at once.
            spent: digest -> seconds for those under way.
        """
        spent = spent or {}
        each = {stage.digest: max(0.0, self.seconds(stage) - spent.get(stage.digest, 0.0)) for stage in stages}
        if not each:
            return 0.0
        return max(sum(each.values()) / workers, max(chains(stages, each).values()))


def chains(stages: Sequence[Stage], seconds: Mapping[str, float]) -> dict[str, float]:
    """For each stage the longest way from its begin to the end of whatever needs it, in seconds.

    Args:
        stages: each after its inputs.
        seconds: digest -> how long each takes.
    """
    after: dict[str, float] = defaultdict(float)
    for stage in reversed(stages):
        after[stage.digest] += seconds[stage.digest]
        for each in stage.made_of():
            after[each.digest] = max(after[each.digest], after[stage.digest])
    return {stage.digest: after[stage.digest] for stage in stages}


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
