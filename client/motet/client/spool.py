"""The owner's spool: jobs as files, written by the Flower ClientApp and run by the owner's worker.

    Spool(home).submit("train", TrainRequest(charter=digest))     # asking twice is asking once

    spool = Spool(home)                         # in the worker; a second worker gets WorkerBusy
    while (job := spool.claim()) is not None:
        spool.update(job.id, "running", progress=0.5, detail="step 40 of 80")
        spool.update(job.id, "done", result={"contribution": digest, "transport": "grpc"})

Every file is whole or absent. One worker holds the spool's lock for as long as its process lives, so a job that is
"running" when a worker takes the lock was left by a crash, and is claimed again. A file that cannot be read hides no
other: `problems()` names it.
"""

import fcntl
import logging
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from motet.protocols.canonical import storage_errors, write_atomically
from motet.protocols.control import EvaluateRequest, JobKind, JobState, Phase, TrainRequest
from motet.protocols.documents import MAX_DOCUMENT_BYTES, Document, first_problem
from motet.protocols.errors import DocumentError, SpoolError, WorkerBusy
from motet.protocols.jobs import Request, job_id, kind_of

logger = logging.getLogger(__name__)

_LOCK_TRIES = 20
_LOCK_PAUSE_SECONDS = 0.02
_MAX_DETAIL = 2000
RECENT = 16
"""Jobs in a status: it stays far below the limit of a document."""
_IN_ORDER = ("running", "queued")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job in the spool: what was asked and how far it is."""

    request: Request
    state: JobState

    @property
    def id(self) -> str:
        """The job's name, which is also its file's."""
        return self.state.id

    @property
    def kind(self) -> JobKind:
        """What to do."""
        return self.state.kind


class _JobFile(Document):
    schema_: Literal["motet.job/1"] = Field("motet.job/1", alias="schema")
    request: TrainRequest | EvaluateRequest
    state: JobState
    submitted: float


class Spool:
    """The jobs of one owner, under `home/spool`."""

    def __init__(self, home: Path) -> None:
        self._jobs = home / "spool" / "jobs"
        self._lock_path = home / "spool" / "worker.lock"
        self._edit_path = home / "spool" / "edit.lock"
        self._held: int | None = None
        self._told: set[Path] = set()
        with storage_errors(self._jobs):
            self._jobs.mkdir(parents=True, exist_ok=True)

    def submit(self, kind: JobKind, request: Request) -> JobState:
        """Queue a job; one that exists is left as it is, except that a failed one is queued again.

        Raises:
            SpoolError: the request is of another kind, or the job's file is damaged.
            StorageError: the disk is full.
        """
        if kind != kind_of(request):
            raise SpoolError(f"saw a {type(request).__name__} for a {kind} job, wanted the request of that kind")
        with self._editing():
            known = self._read(job_id(request)) if self._path(job_id(request)).exists() else None
            if known is not None and known.state.state != "failed":
                return known.state
            state = JobState(id=job_id(request), kind=kind, state="queued", updated=time.time())
            return self._write(_JobFile(request=request, state=state, submitted=time.time()))

    def fulfil(
        self, request: Request, *, detail: str, result: dict[str, Any], leave: Collection[Phase] = ()
    ) -> JobState:
        """Record as done what the owner did by hand, whether or not it has been asked for yet.

        A job that is "running" with no worker was left by a crash, and counts as queued.

        Args:
            request: what the job was, or will be, asked to do.
            detail: one line for people.
            result: see `JobState.result`.
            leave: states in which the job stays as it is.

        Raises:
            SpoolError: the worker is at that job, or its file is damaged.
            StorageError: the disk is full.
        """
        name, now = job_id(request), time.time()
        with self._editing():
            known = self._read(name) if self._path(name).exists() else None
            running = known is not None and known.state.state == "running" and self.worker_alive()
            if known is not None and known.state.state in leave and (running or known.state.state != "running"):
                return known.state
            if running:
                raise SpoolError(f"saw {name} running, wanted it at rest; let the worker finish, or stop it first")
            state = JobState(
                id=name, kind=kind_of(request), state="done", progress=1, detail=detail, updated=now, result=result
            )
            return self._write(
                _JobFile(request=request, state=state, submitted=now if known is None else known.submitted)
            )

    def jobs(self) -> list[JobState]:
        """Every readable job, the oldest first."""
        return [file.state for file in self._files()]

    def recent(self) -> list[JobState]:
        """The jobs that changed last, the latest last, at most `RECENT`: what a status tells."""
        return sorted(self.jobs(), key=lambda job: job.updated)[-RECENT:]

    def job(self, name: str) -> Job:
        """One job by its id.

        Raises:
            SpoolError: there is none, or its file is damaged.
        """
        file = self._read(name)
        return Job(request=file.request, state=file.state)

    def problems(self) -> list[SpoolError]:
        """What in the spool cannot be read, one error for each file."""
        found = []
        for path in sorted(self._jobs.glob("*.json")):
            try:
                self._read_path(path)
            except SpoolError as error:
                found.append(error)
        return found

    def claim(self) -> Job | None:
        """The job to run now, marked as running: one that a crash interrupted, else the oldest in the queue.

        The first call takes the worker's lock, which `close`, or the end of the process, gives back.

        Raises:
            WorkerBusy: another worker holds the lock.
        """
        self.hold()
        with self._editing():
            for wanted in _IN_ORDER:
                for file in self._files():
                    if file.state.state == wanted:
                        state = file.state.model_copy(update={"state": "running", "updated": time.time()})
                        return Job(request=file.request, state=self._write(file.model_copy(update={"state": state})))
        return None

    def update(
        self,
        name: str,
        state: Phase,
        progress: float | None = None,
        detail: str | None = None,
        result: dict[str, Any] | None = None,
    ) -> JobState:
        """Record how a job stands; None keeps what was recorded before, and "done" means a progress of 1.

        Raises:
            SpoolError: there is no such job, its file is damaged, or the values break a rule.
        """
        changes: dict[str, Any] = {"progress": progress, "detail": detail and detail[:_MAX_DETAIL], "result": result}
        if state == "done":
            changes["progress"] = 1.0
        with self._editing():
            file = self._read(name)
            values = file.state.model_dump() | {key: value for key, value in changes.items() if value is not None}
            try:
                new = JobState.model_validate(values | {"state": state, "updated": time.time()})
            except ValidationError as error:
                raise SpoolError(f"cannot record {name}: {first_problem(error)}") from error
            return self._write(file.model_copy(update={"state": new}))

    def wait_for_change(self, seen: dict[str, Phase], seconds: float) -> list[JobState]:
        """The recent jobs, as soon as one is news against `seen`, at the latest after `seconds`.

        That a queued job runs is no news: telling it would cost a message without moving anything.
        """
        deadline = time.monotonic() + seconds
        while True:
            jobs = self.recent()
            if any(_is_news(seen.get(job.id), job.state) for job in jobs) or time.monotonic() >= deadline:
                return jobs
            time.sleep(0.25)

    def worker_alive(self) -> bool:
        """Whether a worker, this one or another process, holds the spool."""
        if self._held is not None:
            return True
        descriptor = self._open(self._lock_path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def close(self) -> None:
        """Give the worker's lock back."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def hold(self) -> None:
        """Take the worker's lock, which `close`, or the end of the process, gives back; raises WorkerBusy."""
        if self._held is not None:
            return
        descriptor = self._open(self._lock_path)
        for _ in range(_LOCK_TRIES):  # a reader asking worker_alive() holds a shared lock for a moment
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            pid = int(text) if text.isdecimal() else None
            raise WorkerBusy(
                f"the spool {self._jobs.parent} is held by the worker with process id {pid or 'unknown'}; "
                "one worker at a time: stop that one, or let it finish",
                pid=pid,
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._held = descriptor

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Have the worker's lock for the length of a block; raises WorkerBusy."""
        try:
            self.hold()
            yield
        finally:
            self.close()

    @contextmanager
    def _editing(self) -> Iterator[None]:
        """Read and write a job as one step among processes."""
        descriptor = self._open(self._edit_path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _open(self, path: Path) -> int:
        with storage_errors(path):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _files(self) -> list[_JobFile]:
        found = []
        for path in self._jobs.glob("*.json"):
            try:
                found.append(self._read_path(path))
            except SpoolError as error:
                if path not in self._told:  # the queue is looked at several times a second
                    self._told.add(path)
                    logger.warning("%s", error)
        return sorted(found, key=lambda file: (file.submitted, file.state.id))

    def _path(self, name: str) -> Path:
        return self._jobs / f"{name}.json"

    def _read(self, name: str) -> _JobFile:
        path = self._path(name)
        if not path.exists():
            raise SpoolError(f"saw no job {name} in {self._jobs}; `motet work --help` lists the jobs there are")
        return self._read_path(path)

    def _read_path(self, path: Path) -> _JobFile:
        try:
            if path.stat().st_size > MAX_DOCUMENT_BYTES:
                raise DocumentError(f"it is larger than {MAX_DOCUMENT_BYTES} bytes")
            file = _JobFile.parse(path.read_bytes())
        except (OSError, DocumentError) as error:
            raise SpoolError(f"{path} is not a job: {error}; move it out of the spool, and ask again") from error
        if path != self._path(file.state.id) or file.state.id != job_id(file.request):
            raise SpoolError(
                f"{path} holds the job {job_id(file.request)} under another name; move it out of the spool"
            )
        return file

    def _write(self, file: _JobFile) -> JobState:
        write_atomically(self._path(file.state.id), file.canonical())
        return file.state


def _is_news(before: Phase | None, now: Phase) -> bool:
    return before != now and not {before, now} <= {"queued", "running"}
