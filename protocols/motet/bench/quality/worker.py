"""A process that does stage after stage: `python -m motet.bench.quality.worker EVENTS`.

Jobs come as JSON lines on its standard input, events go as JSON lines to the file descriptor EVENTS. What a stage or a
library prints goes to the stage's log, and nowhere near the events. It ends when its standard input does, in the
middle of a stage too: whoever sent the job is gone.

    Job(digest="sha256:…", identity={"kind": "anchor", …}, …).model_dump_json()        # in
    {"kind": "progress", "text": "step 100 of 900"}                  # out
    {"kind": "done"} or {"kind": "failed", "text": "…"}
"""

import os
import platform
import queue
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from motet.bench.memory import MemoryWatch
from motet.bench.quality.cache import RECORD, Record
from motet.bench.quality.stages import work_of
from motet.protocols.canonical import file_digest, write_atomically
from motet.protocols.documents import Strict
from motet.protocols.errors import DataError, MotetError

_RECORDED = ("torch", "transformers", "motet")
_TAIL_LINES = 12


class Job(Strict):
    """A stage to do."""

    digest: str
    """The stage's name."""
    identity: dict[str, Any]
    """Its kind, version, spec and the digests of its inputs."""
    label: str
    weight: float
    paths: dict[str, str]
    """Where each input lies."""
    out: str
    """An empty folder to fill."""
    log: str
    """Where what is printed goes."""


class Event(Strict):
    """What a worker says."""

    kind: Literal["progress", "done", "failed"]
    text: str = ""
    """A line of progress; the error and the end of its traceback."""


def perform(job: Job, tell: Callable[[str], None]) -> None:
    """Do a stage and write its record beside what it wrote.

    Raises:
        DataError: a file is no longer what it was when the run began.
    """
    work = work_of(job.identity["kind"])  # imports what it needs, which the stages after it need not
    begun, watch = time.perf_counter(), MemoryWatch.begin()
    paths = {name: Path(path) for name, path in job.paths.items()}
    for name, path in paths.items():
        if path.is_file() and file_digest(path) != job.identity["inputs"][name]:
            raise DataError(f"{path} has changed since the run began; run the same command again")
    _settle(job.digest)
    work(job.identity["spec"], paths, Path(job.out), tell)
    record = Record(
        **job.identity,
        label=job.label,
        weight=job.weight,
        seconds=time.perf_counter() - begun,
        peak_rss_mb=watch.before / 1e6 + watch.extra_mb(),
        versions=versions(),
    )
    write_atomically(Path(job.out) / RECORD, record.canonical())


def versions() -> dict[str, str]:
    """What figures may depend on: package -> version."""
    return {"python": platform.python_version()} | {name: version(name) for name in _RECORDED}


def _settle(digest: str) -> None:
    """The same random state and number of threads whatever stage this process did before."""
    random.seed(digest)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(int(digest[-8:], 16))
        torch.set_num_threads(1)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(int(digest[-8:], 16))


def serve(jobs: Iterator[Job], say: Callable[[Event], None]) -> None:
    """Do jobs until there are no more; an error in one is said, and the next is taken."""
    for job in jobs:
        _print_to(Path(job.log))
        try:
            perform(job, lambda line: say(Event(kind="progress", text=line)))
        except MotetError as error:
            traceback.print_exc()
            say(Event(kind="failed", text=f"{type(error).__name__}: {error}"))
        except Exception:  # whatever a stage raises is that stage's failure
            lines = traceback.format_exc()
            sys.stderr.write(lines)
            say(Event(kind="failed", text="\n".join(lines.splitlines()[-_TAIL_LINES:])))
        else:
            say(Event(kind="done"))


def _print_to(log: Path) -> None:
    """Send what this process prints, at whatever depth, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def _incoming() -> Iterator[Job]:
    """Jobs from standard input, read by a thread, which ends the process when there is nobody to work for."""
    stream = os.fdopen(os.dup(0), "rb")
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a stage must not eat jobs
        os.dup2(nothing.fileno(), 0)
    arrived: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            arrived.put(Job.model_validate_json(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield arrived.get()


def main(descriptor: int) -> None:
    """Serve the process at the other end of the pipes."""
    os.set_inheritable(descriptor, False)
    with os.fdopen(descriptor, "wb", buffering=0) as events:
        serve(_incoming(), lambda event: _send(events.fileno(), event))


def _send(descriptor: int, event: Event) -> None:
    rest = event.model_dump_json().encode() + b"\n"
    while rest:
        rest = rest[os.write(descriptor, rest) :]


if __name__ == "__main__":
    main(int(sys.argv[1]))
