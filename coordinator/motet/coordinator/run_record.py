"""What a run keeps under `home/run`, so that the next run, or whoever watches, knows where things stand.

    with RunRecord.hold(home, run="…") as record:          # FederationError if another run is going on
        record.publish(state)
    read_run(home)                                          # RunState, None before the first run

    run/state.json                                          where the run stands, for people and for `flwr`-less waiting
    run/owners/<owner>/losses.jsonl                         what its training told, see `motet.coordinator.loss_record`
    run/owners/<owner>/<contribution>/receipt.json          the answer to an update that came inline
    run/owners/<owner>/<contribution>/receipt.delivered     the owner has it
    run/owners/<owner>/<contribution>/sent.json             the bytes that the owner sent for it, as the owner counted
    run/owners/<owner>/<contribution>/<composite>.json      the owner's signed evaluation report

Keys, not node ids or run ids, name the folders: nothing is done twice because Flower was started again.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from motet.coordinator.loss_record import LossRecord, read_losses
from motet.protocols.canonical import Digest, canonical_json, hex_of, storage_errors, write_atomically
from motet.protocols.control import Phase
from motet.protocols.documents import Document, Name, PublicKey, Strict
from motet.protocols.errors import FederationError
from motet.protocols.signing import Signed
from motet.protocols.training_steps import TrainingStep

logger = logging.getLogger(__name__)

LOSSES = "losses.jsonl"
_LOCK_TRIES = 5
_LOCK_PAUSE_SECONDS = 0.02
RunPhase = Literal["gather", "assemble", "evaluate", "done", "failed"]


class OwnerProgress(Strict):
    """One owner, as the coordinator sees it in the current phase."""

    name: Name
    connected: bool
    standing: Literal["open", "settled", "failed"]
    job: Phase | None = None
    """The state of the job the phase asked for; None before the owner told."""
    progress: float = Field(0.0, ge=0, le=1)
    detail: str = Field("", max_length=4000)
    """What the job says, or why the owner counts as failed."""


class RunState(Document):
    """Where a run stands."""

    schema_: Literal["motet.run/1"] = Field("motet.run/1", alias="schema")
    run: str
    """Flower's id of the run."""
    phase: RunPhase
    updated: float
    """Seconds since the epoch."""
    owners: dict[PublicKey, OwnerProgress] = Field(default_factory=dict)
    composite: Digest | None = None
    message: str = Field("", max_length=4000)
    """Why it failed."""


class RunRecord:
    """The folder `home/run`, held by one run at a time."""

    def __init__(self, home: Path, run: str) -> None:
        self.run = run
        self._last: RunState | None = None
        self._losses: dict[str, LossRecord] = {}
        self._directory = home / "run"

    @classmethod
    @contextmanager
    def hold(cls, home: Path, run: str) -> Iterator[Self]:
        """Hold the folder while the run lasts.

        Raises:
            FederationError: another process holds it.
        """
        record = cls(home, run)
        path = record._directory / "lock"
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                _lock(descriptor)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise FederationError(
                    f"another run, process id {holder}, is going on in {home}; wait for it, or stop it with `flwr stop`"
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield record
        finally:
            os.close(descriptor)

    def publish(self, state: RunState) -> None:
        """Say where the run stands, on disk and in the log, if that is news; of a training, keep the loss."""
        quiet = {"updated"}
        if self._last is not None and state.model_dump(exclude=quiet) == self._last.model_dump(exclude=quiet):
            return
        before = self._last.owners if self._last is not None else {}
        if self._last is None or self._last.phase != state.phase:
            logger.info("%s %s", state.phase, state.message)
        for owner, now in state.owners.items():
            if now != before.get(owner):
                logger.info("%s %s: %s %3.0f%% %s", state.phase, now.name, now.standing, 100 * now.progress, now.detail)
                self._keep_loss(owner, now)
        self._last = state
        write_atomically(self._directory / "state.json", state.canonical())

    def _keep_loss(self, owner: str, now: OwnerProgress) -> None:
        told = TrainingStep.told_in(now.detail) if now.job == "running" else None
        if told is None:
            return
        if owner not in self._losses:
            self._losses[owner] = LossRecord(self._owner(owner) / LOSSES)
        self._losses[owner].add(told.step, told.loss, training=told.training)

    @classmethod
    def losses(cls, home: Path, owner: str) -> dict[int, float]:
        """Step -> loss in nats per token, of the training that the owner told of last. Raises OSError."""
        return read_losses(cls(home, "")._owner(owner) / LOSSES)

    def keep_receipt(self, owner: str, contribution: str, receipt: Signed) -> None:
        """Keep the receipt for an inline update until the owner has it."""
        write_atomically(self._folder(owner, contribution) / "receipt.json", receipt.canonical())

    def receipts_due(self, owner: str) -> dict[str, Signed]:
        """Contribution's hexadecimal digits -> receipt, for those the owner does not have yet."""
        waiting = self._owner(owner).glob("*/receipt.json")
        return {
            path.parent.name: Signed.parse(path.read_bytes())
            for path in sorted(waiting)
            if not path.with_name("receipt.delivered").exists()
        }

    def receipt_delivered(self, owner: str, contribution_hex: str) -> None:
        """Note that the owner has the receipt."""
        write_atomically(self._owner(owner) / contribution_hex / "receipt.delivered", b"")

    def keep_report(self, owner: str, contribution: str, composite: str, report: Signed, *, sets: bool = False) -> None:
        """Keep an owner's evaluation of a composite; `sets` says whether it was of all expert sets."""
        write_atomically(self._report(owner, contribution, composite, sets), report.canonical())

    def has_report(self, owner: str, contribution: str, composite: str, *, sets: bool = False) -> bool:
        """Whether this owner has evaluated this composite, with all expert sets if `sets`, in this run or before."""
        whole = self._report(owner, contribution, composite, True).exists()
        return whole or (not sets and self._report(owner, contribution, composite, False).exists())

    def keep_sent(self, owner: str, contribution: str, sent_bytes: int) -> None:
        """Keep what an update took to travel, framing and repeats included."""
        path = self._folder(owner, contribution) / "sent.json"
        data = canonical_json({"sent_bytes": sent_bytes})
        if not path.exists() or path.read_bytes() != data:
            write_atomically(path, data)

    @classmethod
    def sent_bytes(cls, home: Path, owner: str, contribution: str) -> int | None:
        """What `keep_sent` kept, None if nobody told."""
        path = cls(home, "")._folder(owner, contribution) / "sent.json"
        return int(json.loads(path.read_bytes())["sent_bytes"]) if path.exists() else None

    def _report(self, owner: str, contribution: str, composite: str, sets: bool) -> Path:
        return self._folder(owner, contribution) / f"{hex_of(composite)}{'-sets' if sets else ''}.json"

    def _folder(self, owner: str, contribution: str) -> Path:
        return self._owner(owner) / hex_of(contribution)

    def _owner(self, owner: str) -> Path:
        return self._directory / "owners" / hex_of(owner)


def read_run(home: Path) -> RunState | None:
    """Where the last run stands, None before the first.

    Raises:
        DocumentError: the state is damaged.
    """
    try:
        return RunState.parse((home / "run" / "state.json").read_bytes())
    except FileNotFoundError:
        return None


def under_way(home: Path, run: str) -> bool:
    """Whether this run's ServerApp lives: it told of the run, and the folder is held, which a process's end undoes."""
    state = read_run(home)
    if state is None or state.run != run or state.phase in ("done", "failed"):
        return False
    try:
        with (home / "run" / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _lock(descriptor: int) -> None:
    """Take the lock at once, or as soon as one who asks `under_way` has looked; raises BlockingIOError."""
    for left in reversed(range(_LOCK_TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise
            time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return


def wait_for_run(
    home: Path,
    run: str,
    *,
    status: Callable[[], str],
    on_change: Callable[[RunState], None] = lambda _: None,
    poll_seconds: float = 0.3,
    status_seconds: float = 10.0,
) -> RunState:
    """Wait for the end of a run.

    Args:
        home: the coordinator's.
        run: its id.
        status: asks the SuperLink (`SuperLink.status`), every `status_seconds`: a ServerApp may die without a word.
        on_change: called with every new state.
        poll_seconds, status_seconds: how often to look at the disk, and how often to ask.

    Raises:
        FederationError: the run failed or was stopped; the message says why.
    """
    last, asked = None, time.monotonic()
    while True:
        state = read_run(home)
        if state is not None and state.run == run and state != last:
            last = state
            on_change(state)
        if last is not None and last.phase == "done":
            return last
        if last is not None and last.phase == "failed":
            raise FederationError(f"the run failed: {last.message}")
        if time.monotonic() - asked >= status_seconds:
            asked = time.monotonic()
            _require_alive(status(), read_run(home), run)
        time.sleep(poll_seconds)


def _require_alive(status: str, state: RunState | None, run: str) -> None:
    told = state is not None and state.run == run and state.phase in ("done", "failed")
    if status.startswith("finished") and not told:
        raise FederationError(f"the run ended without a word ({status}); `flwr log {run}` shows its last lines")
