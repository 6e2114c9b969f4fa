"""The owner's worker: runs the spool's jobs one at a time, and goes on where it was after any end.

    run_worker(Path("owner"))                  # until SIGTERM or SIGINT, which it answers with a checkpoint
    run_worker(Path("owner"), once=True)       # until nothing is queued

Every stage leaves its result on disk (statistics, checkpoint, packed contribution, receipt, signed report), so a
worker killed at any moment repeats at most the stage it was in, and training only from its last checkpoint. A job
that fails says of what kind the error is in its state, and all of it in the log; the worker takes the next.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

from motet.client.contribute import job_result, rides_flower, send, verdict_line
from motet.client.disclosure import disclosed
from motet.client.evaluation import evaluate
from motet.client.outbox import Packed
from motet.client.owner import OwnerHome, require_kind
from motet.client.packing import pack
from motet.client.preparation import Material, fetch_anchor, prepare
from motet.client.proxy_list import require_ready
from motet.client.spool import Job, Spool
from motet.client.training import Progress, TrainedExpert, fingerprint, train
from motet.client.versions import forget_start
from motet.protocols.canonical import hex_of
from motet.protocols.control import EvaluateRequest, Phase
from motet.protocols.errors import FederationError, MotetError
from motet.protocols.training_steps import NAME_DIGITS, TrainingStep

REPORT_SECONDS = 1.0
"""How often, at most, a running job's progress is written to the spool."""

LOG_SECONDS = 10.0
"""How often, at most, that progress is logged when the coordinator is not told it."""

_log = logging.getLogger(__name__)

Report = Callable[[float, str], None]
"""Told the share done, 0 to 1, and a line for people."""


def run_worker(
    home: Path, *, once: bool = False, poll_seconds: float = 0.5, stop: threading.Event | None = None
) -> list[str]:
    """Run jobs until told to stop, or with `once` until none is queued.

    Args:
        home: the owner's home; read anew for every job, so that edits of owner.toml count.
        once: whether to return when the queue is empty.
        poll_seconds: how long to wait between looks at an empty queue.
        stop: set it to stop from another thread; signals do it otherwise.

    Returns:
        The names of the jobs that failed.

    Raises:
        WorkerBusy: another worker holds this home's spool.
        ConfigurationError, SignatureError: the home cannot be used.
    """
    stopping, failed = stop or threading.Event(), list[str]()
    OwnerHome.load(home)
    spool = Spool(home)
    try:
        with stopped_by_signals(stopping):
            while not stopping.is_set():
                job = spool.claim()
                if job is not None:
                    run = _JobRun(home=home, spool=spool, job=job, stopping=stopping)
                    failed += [job.id] if run.run() == "failed" else []
                elif once:
                    break
                else:
                    stopping.wait(poll_seconds)
    finally:
        spool.close()
    return failed


def make_contribution(
    home: OwnerHome, *, report: Report = lambda share, line: None, should_stop: Callable[[], bool] = lambda: False
) -> Packed | None:
    """Measure, train and pack under the home's charter, resuming from whatever is done; None when told to stop.

    Raises:
        AnchorError, StatisticsError, DataError, TrainingError: the material or the training.
        ExpertError, CodecError, TransferError, StorageError: what came of it, or getting the anchor.
    """
    settings = home.config.training
    require_kind(home.charter, settings.kind, settings.rank)  # before hours of training, not after
    home.codec_settings()
    require_ready(home)
    material, trained = _trained(home, report, should_stop)
    if trained is None:
        return None

    def tell(line: str) -> None:
        if should_stop():
            raise _Stopped
        report(0.88, line)

    report(0.85, "encoding the expert")
    try:
        return pack(trained, material, home, tell=tell)
    except _Stopped:
        return None


def trained_expert(home: OwnerHome, *, report: Report = lambda share, line: None) -> tuple[Material, TrainedExpert]:
    """The material and the expert trained from it, which is trained now unless that is done; raises the same."""
    material, trained = _trained(home, report, lambda: False)
    assert trained is not None  # noqa: S101 - nobody tells it to stop
    return material, trained


def training_folder(home: OwnerHome) -> Path:
    """Where the checkpoints of training under the home's charter lie."""
    return home.work / "training" / hex_of(home.charter.digest)[:16]


def training_name(home: OwnerHome, material: Material) -> str:
    """What the coordinator hears a training called: it tells trainings apart, and says nothing of what they are of.

    Made of all that determines the expert, the text among it, and signed, so that nobody without the key can try texts.
    """
    signature = home.key.sign("motet.training-name/1", fingerprint(material, home.config.training).encode())
    return sha256(bytes.fromhex(signature)).hexdigest()[:NAME_DIGITS]


def _trained(home: OwnerHome, report: Report, should_stop: Callable[[], bool]) -> tuple[Material, TrainedExpert | None]:
    report(0.0, "reading the text and the anchor")
    fetch_anchor(home)
    material = prepare(home)
    report(0.05, f"training on {len(material.corpus.train)} documents")
    name = training_name(home, material)

    def on_progress(progress: Progress) -> None:
        told = TrainingStep(step=progress.step, steps=progress.steps, loss=progress.loss, training=name)
        report(0.05 + 0.8 * progress.step / progress.steps, f"{told}, {progress.tokens_per_second:,.0f} tokens/s")

    folder = training_folder(home)
    return material, train(material, home.config.training, folder, on_progress=on_progress, should_stop=should_stop)


class _Stopped(Exception):  # noqa: N818 - ends a job from inside a callback, and goes no further than `_JobRun`
    pass


@dataclass(kw_only=True, slots=True)
class _JobRun:
    """One job from claim to result."""

    home: Path
    spool: Spool
    job: Job
    stopping: threading.Event
    _reported: float = field(default=0.0, init=False)
    _logged: float = field(default=0.0, init=False)
    _state: Phase = field(default="running", init=False)

    def run(self) -> Phase:
        """Run the job to the state returned; whatever happens is told to the spool, whose errors alone are raised."""
        _log.info("%s: begun", self.job.id)
        try:
            self._dispatch(OwnerHome.load(self.home))
        except _Stopped:
            self._tell("queued", detail="the worker was stopped; the job goes on when it starts again")
        except Exception as error:  # its message stays in the log here: a job's state is shown to the coordinator
            _log.error("%s: %s", self.job.id, error, exc_info=None if isinstance(error, MotetError) else error)
            self._tell("failed", detail=disclosed(error))
        return self._state

    def _dispatch(self, home: OwnerHome) -> None:
        request = self.job.request
        if request.charter != home.charter.digest:
            raise FederationError(
                f"the job is for the charter {request.charter}, this home joined {home.charter.digest}; "
                "join again if the rules have changed"
            )
        if isinstance(request, EvaluateRequest):
            signed = evaluate(home, request.composite, sets=request.sets, on_progress=self._report_or_stop)
            self._tell("done", detail="scored", result={"report": signed.model_dump(mode="json", by_alias=True)})
        else:
            self._train(home)

    def _train(self, home: OwnerHome) -> None:
        # Before the owner agrees, not even a loss leaves: the coordinator reads a job's state.
        report = self._report if home.config.contribution.consent == "automatic" else self._report_share
        packed = make_contribution(home, report=report, should_stop=self.stopping.is_set)
        if packed is None:
            raise _Stopped
        settings = home.config.contribution
        asks = settings.consent == "ask" or settings.transport == "file"
        if asks and not packed.receipt.exists():  # else the owner has contributed it by hand, perhaps a moment ago
            how = "`motet contribute --to FILE`" if settings.transport == "file" else "`motet contribute`"
            self._tell("waiting", detail=f"packed; {how} lets it leave", result=job_result(packed, None))
            return
        self._hand_over(home, packed)
        forget_start(home)

    def _hand_over(self, home: OwnerHome, packed: Packed) -> None:
        if not packed.receipt.exists() and rides_flower(home, packed):
            self._tell("done", detail="packed; Flower carries it", result=job_result(packed, None, inline=True))
        else:
            self._send(home, packed)

    def _send(self, home: OwnerHome, packed: Packed) -> None:
        def progress(done: int, total: int) -> None:
            self._report_or_stop(0.9 + 0.1 * done / max(1, total), f"sent {done:,} of {total:,} bytes")

        sent = send(home, packed, progress=progress)
        state: Phase = "done" if sent.verdict.status == "admitted" else "failed"
        self._tell(state, detail=verdict_line(sent), result=job_result(packed, sent))

    def _report(self, share: float, line: str) -> None:
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._tell("running", progress=share, detail=line)

    def _report_share(self, share: float, line: str) -> None:
        """Tell the coordinator the share alone; the line is for the owner's log, now and then."""
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            _log.info("%s: %s", self.job.id, line)
        self._report(share, "at work")

    def _report_or_stop(self, share: float, line: str) -> None:
        if self.stopping.is_set():
            raise _Stopped
        self._report(share, line)

    def _tell(
        self, state: Phase, *, progress: float | None = None, detail: str, result: dict[str, Any] | None = None
    ) -> None:
        if state != "running":
            _log.info("%s: %s: %s", self.job.id, state, detail)
        self._state = state
        self.spool.update(self.job.id, state, progress=progress, detail=detail, result=result)


@contextmanager
def stopped_by_signals(stopping: threading.Event) -> Iterator[None]:
    """While open, SIGTERM and SIGINT set `stopping`; a second one ends the process the usual way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
