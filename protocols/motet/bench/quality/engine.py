"""Do the stages that the cache lacks, several at once, and keep what is done whatever happens.

    folders = run(stages, Path("motet-quality"), workers=2, tell=note)
    folders[stage.digest] / "scores.json"

A stage that fails, or whose process dies, takes down only what is made of it: the others finish and are kept, then a
FederationError says what failed and where its log is. The same call goes on from there. Two runs may share a cache;
each stage is done by one of them.
"""

import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from motet.bench.quality.cache import Cache
from motet.bench.quality.crew import Crew
from motet.bench.quality.pace import Pace, chains, duration
from motet.bench.quality.stages import File, Stage, Tell, check_kinds, in_order
from motet.bench.quality.worker import Event, Job
from motet.protocols.errors import ConfigurationError, FederationError
from motet.protocols.processes import ending_as_interrupt

_LOOK_AGAIN_SECONDS = 0.5
"""How often to see whether another run has finished a stage."""
_PROGRESS_SECONDS = 20.0
"""How often a stage under way may say where it is."""


def run(stages: Iterable[Stage], cache: Path, *, workers: int, tell: Tell = lambda line: None) -> dict[str, Path]:
    """Do what is missing.

    Args:
        stages: what is wanted; what it is made of is found from it, and made only if something missing needs it.
        cache: the folder of finished stages; made if there is none.
        workers: processes at work at once.
        tell: told a line for each finished stage, and now and then where one under way is.

    Returns:
        digest -> folder of everything that is there: the stages, and what they are made of as far as it is kept.

    Raises:
        ConfigurationError: a kind of stage is not installed, or there are no workers.
        FederationError: stages failed; the message names their logs.
        StorageError: the cache cannot be written.
    """
    if workers < 1:
        raise ConfigurationError(f"saw {workers} workers, wanted at least one; give --workers more")
    store, stages = Cache(cache), list(stages)
    todo = missing(stages, store)
    check_kinds(todo)
    if todo:
        with ending_as_interrupt(), Crew(size=workers, logs=store.logs) as crew:
            _Run(store, crew, todo, workers, tell).play()
    return {stage.digest: store.folder(stage) for stage in in_order(stages) if store.holds(stage)}


def missing(stages: Iterable[Stage], cache: Cache) -> list[Stage]:
    """What has to be done to have the stages, each after its inputs."""
    return [stage for stage in in_order(stages, have=cache.holds) if not cache.holds(stage)]


@dataclass(slots=True, kw_only=True)
class _UnderWay:
    stage: Stage
    out: Path
    claim: ExitStack
    begun: float
    told: float


class _Run:
    """One call of `run`: what is left, what is under way, what has failed."""

    def __init__(self, cache: Cache, crew: Crew, todo: list[Stage], workers: int, tell: Tell) -> None:
        self._cache, self._crew, self._workers = cache, crew, workers
        self._tell = tell
        self._pace = Pace(cache.records())
        seconds = {stage.digest: self._pace.seconds(stage) for stage in todo}
        first = chains(todo, seconds)
        self._order = todo
        self._left = {stage.digest: stage for stage in sorted(todo, key=lambda stage: -first[stage.digest])}
        self._under_way: dict[str, _UnderWay] = {}
        self._failed: dict[str, str] = {}
        self._dropped = 0
        self._done = 0

    def play(self) -> None:
        """Do everything that can be done."""
        try:
            while self._left or self._under_way:
                self._hand_out()
                for job, event in self._crew.listen(timeout=_LOOK_AGAIN_SECONDS):
                    self._note(self._under_way[job.digest], event)
        finally:
            for each in list(self._under_way.values()):
                self._let_go(each)
        if self._failed:
            raise FederationError(self._failures())

    def _hand_out(self) -> None:
        for stage in list(self._left.values()):
            if not self._crew.free:
                return
            if all(self._cache.holds(each) for each in stage.made_of()):
                self._take(stage)

    def _take(self, stage: Stage) -> None:
        """Begin a stage, unless another run is at it or has finished it."""
        with ExitStack() as claim:
            try:
                claim.enter_context(self._cache.claimed(stage))
            except BlockingIOError:
                return
            del self._left[stage.digest]
            if self._cache.holds(stage):
                self._count(stage, "done by another run")
                return
            out, now = self._cache.begin(stage), time.monotonic()
            self._under_way[stage.digest] = _UnderWay(stage=stage, out=out, claim=claim.pop_all(), begun=now, told=now)
        self._crew.give(self._job(stage, out))

    def _job(self, stage: Stage, out: Path) -> Job:
        paths = {
            name: str(each.path if isinstance(each, File) else self._cache.folder(each))
            for name, each in stage.inputs.items()
        }
        log = self._cache.log(stage)
        log.unlink(missing_ok=True)
        return Job(
            digest=stage.digest,
            identity=stage.identity(),
            label=stage.label,
            weight=stage.weight,
            paths=paths,
            out=str(out),
            log=str(log),
        )

    def _note(self, under_way: _UnderWay, event: Event) -> None:
        stage, now = under_way.stage, time.monotonic()
        match event.kind:
            case "progress":
                if now - under_way.told > _PROGRESS_SECONDS:
                    under_way.told = now
                    self._tell(f"  {stage.label}: {event.text}")
            case "done":
                self._cache.finish(stage, under_way.out)
                self._let_go(under_way)
                record = self._cache.record(stage)
                self._pace.note(stage.kind, stage.weight, record.seconds)
                self._count(stage, f"{duration(record.seconds)}, {record.peak_rss_mb:,.0f} MB")
            case "failed":
                self._let_go(under_way)
                self._fail(stage, event.text)

    def _let_go(self, under_way: _UnderWay) -> None:
        del self._under_way[under_way.stage.digest]
        shutil.rmtree(under_way.out, ignore_errors=True)
        under_way.claim.close()

    def _count(self, stage: Stage, how: str) -> None:
        self._done += 1
        self._tell(f"{self._done} of {len(self._order)}  {stage.label}  {how}{self._estimate()}")

    def _estimate(self) -> str:
        waiting = self._left.keys() | self._under_way.keys()
        stages = [stage for stage in self._order if stage.digest in waiting]
        if not stages:
            return ""
        now = time.monotonic()
        spent = {digest: now - each.begun for digest, each in self._under_way.items()}
        return f"; about {duration(self._pace.left(stages, workers=self._workers, spent=spent))} left"

    def _fail(self, stage: Stage, why: str) -> None:
        """Note a failure, and give up what is made of it."""
        self._failed[stage.digest] = f"{stage.label} failed: {why}\nits log is {self._cache.log(stage)}"
        self._tell(f"{stage.label} failed; its log is {self._cache.log(stage)}")
        lost = {stage.digest}
        for each in self._order:
            if any(part.digest in lost for part in each.made_of()):
                lost.add(each.digest)
        for digest in lost & self._left.keys():
            del self._left[digest]
            self._dropped += 1

    def _failures(self) -> str:
        head = f"saw {len(self._failed)} of {len(self._order)} stages fail"
        if self._dropped:
            head += f", and {self._dropped} that are made of them were not begun"
        tail = "mend what the messages name and run the same command again: what was complete is kept"
        return "\n".join([f"{head}; {tail}", *self._failed.values()])
