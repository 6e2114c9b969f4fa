"""Worker processes that are kept, talked to, and replaced when they die.

    with Crew(size=2, logs=cache.logs) as crew:
        while work or crew.busy:
            while work and crew.free:
                crew.give(work.pop())
            for job, event in crew.listen(timeout=1.0):
                ...                                    # a worker's death is a failed event for its job

Leaving the block ends the workers, whatever they are at. One thread must make, use and leave a crew: Linux ends a
child when the thread that started it does.
"""

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from motet.bench.quality.worker import Event, Job
from motet.protocols.processes import Troupe, log_tail

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""One thread a worker: two processes with several threads each, on the same cores, wait for each other."""
_ONCE = 1 << 16


@dataclass(slots=True, kw_only=True, eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    log: Path
    """What it prints between jobs."""
    events: int
    job: Job | None = None
    unread: bytes = b""


class Crew:
    """Up to `size` workers, started when there is something to do."""

    def __init__(self, *, size: int, logs: Path) -> None:
        """Make a crew without anybody in it; `logs` takes what workers print between stages."""
        self._size, self._logs = size, logs
        self._workers: list[_Worker] = []
        self._started = 0
        self._selector = selectors.DefaultSelector()
        self._troupe = Troupe(logs=logs, environment=os.environ | ENVIRONMENT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._troupe.end()
        for worker in self._workers:
            self._forget(worker)
        self._workers.clear()
        self._selector.close()

    @property
    def busy(self) -> bool:
        """Whether anybody has a job."""
        return any(worker.job is not None for worker in self._workers)

    @property
    def free(self) -> bool:
        """Whether another job can be taken at once."""
        return sum(worker.job is not None for worker in self._workers) < self._size

    def give(self, job: Job) -> None:
        """Have a free worker do a job; starts one if need be."""
        idle = (each for each in self._workers if each.job is None and each.process.poll() is None)
        worker = next(idle, None) or self._start()
        worker.job = job
        assert worker.process.stdin is not None  # noqa: S101 - it was started with a pipe
        with suppress(BrokenPipeError):  # it has died; listening will tell
            worker.process.stdin.write(job.model_dump_json().encode() + b"\n")
            worker.process.stdin.flush()

    def listen(self, *, timeout: float) -> Iterator[tuple[Job, Event]]:
        """What workers said since; waits for it up to `timeout` seconds."""
        for key, _ in self._selector.select(timeout):
            worker: _Worker = key.data
            if data := os.read(worker.events, _ONCE):
                yield from self._said(worker, data)
            else:
                yield from self._died(worker)

    def _start(self) -> _Worker:
        self._started += 1
        name = f"worker-{os.getpid()}-{self._started}"
        ours, theirs = os.pipe()
        try:
            process = self._troupe.start(
                name,
                [sys.executable, "-P", "-m", "motet.bench.quality.worker", str(theirs)],
                stdin=subprocess.PIPE,
                pass_fds=(theirs,),
            )
        finally:
            os.close(theirs)
        worker = _Worker(process=process, log=self._logs / f"{name}.log", events=ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _said(self, worker: _Worker, data: bytes) -> Iterator[tuple[Job, Event]]:
        *lines, worker.unread = (worker.unread + data).split(b"\n")
        for line in lines:
            event, job = Event.model_validate_json(line), worker.job
            if job is None:  # a thread that a stage left behind
                continue
            if event.kind != "progress":
                worker.job = None
            yield job, event

    def _died(self, worker: _Worker) -> Iterator[tuple[Job, Event]]:
        code = worker.process.wait()
        self._workers.remove(worker)
        self._forget(worker)
        if worker.job is not None:
            log = Path(worker.job.log)
            how = f"its worker {_ending(code)}; {log_tail(log if log.exists() else worker.log)}"
            yield worker.job, Event(kind="failed", text=how)

    def _forget(self, worker: _Worker) -> None:
        self._selector.unregister(worker.events)
        os.close(worker.events)
        with suppress(OSError):
            if not worker.log.stat().st_size:
                worker.log.unlink()
        if worker.process.stdin is not None:
            with suppress(BrokenPipeError):
                worker.process.stdin.close()


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed, perhaps for want of memory (then give fewer --workers)"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"
