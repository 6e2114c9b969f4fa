"""Child processes that never outlive the one who started them.

    with Troupe(logs=directory / "logs") as troupe:
        troupe.start("data-plane", ["motet", "coordinate", ...])
        troupe.run("init", ["motet", "init", ...])
        troupe.check()          # FederationError when a child ended early, with the end of its log

Every child leads a process group of its own; leaving the block, however it happens, ends the groups and whatever
their members started. On Linux a child is also told to end when this process dies without leaving the block.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

import psutil

from motet.protocols.errors import FederationError

_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_LOG_TAIL_LINES = 12


def end_with_parent(parent: int | None = None) -> None:
    """Ask Linux to end this process when its parent dies; for `preexec_fn`.

    Args:
        parent: the parent's process id; given that, one who died before the asking is noticed too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if parent not in (None, os.getppid()):
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while a child is started and noted: what a handler raises inside a fork is lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = {number: handler for number, handler in before.items() if callable(handler)}
    for number in held:
        signal.signal(number, lambda seen, frame: caught.append(seen))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        for each in caught:
            signal.raise_signal(each)


@contextmanager
def ending_as_interrupt() -> Iterator[None]:
    """A request to end ends the block as Ctrl-C does, so that nothing is left behind."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def log_tail(path: Path) -> str:
    """The end of a log, under a line that names it."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return "\n".join([f"the end of {path}:", *text.splitlines()[-_LOG_TAIL_LINES:]])


class Troupe:
    """A set of child processes with a log file each."""

    def __init__(self, *, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        """Keep the children's output in `logs`; `environment` is theirs, None this process's own."""
        self._logs = logs
        self.environment = dict(os.environ if environment is None else environment)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._may_end: set[str] = set()
        self._descendants: dict[int, psutil.Process] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        may_end: bool = False,
        stdin: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a child whose output goes to NAME.log; `check` lets it end only if it `may_end`; `wait` says how.

        `stdin` and `pass_fds` are those of `subprocess.Popen`: a child that is talked to has a pipe there.
        """
        with (self._logs / f"{name}.log").open("ab") as log, _signals_later():
            child = self._running[name] = subprocess.Popen(  # noqa: S603 - our own commands
                command,
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment | dict(environment or {}),
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),
                pass_fds=pass_fds,
            )
        if may_end:
            self._may_end.add(name)
        return child

    def running(self, name: str) -> bool:
        """Whether this child is still running."""
        return name in self._running and self._running[name].poll() is None

    def wait(self, name: str, *, timeout: float) -> None:
        """Wait for a child to end well.

        Raises:
            FederationError: it failed, or took longer than `timeout` seconds.
        """
        child = self._running[name]
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise FederationError(f"{name} took longer than {timeout:.0f} s; {self._tail(name)}") from error
        if code != 0:
            raise FederationError(f"{name} ended with code {code}; {self._tail(name)}")
        del self._running[name]

    def check(self) -> None:
        """Raise a FederationError if a child has ended; remember the children's children for the end."""
        for name, child in self._running.items():
            if child.poll() is not None and name not in self._may_end:
                raise FederationError(f"{name} ended early with code {child.returncode}; {self._tail(name)}")
        self._remember()

    def _remember(self) -> None:
        for child in self._running.values():
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(child.pid).children(recursive=True):
                    self._descendants.setdefault(process.pid, process)

    def end(self) -> None:
        """End every child and everything they started: politely, then for certain."""
        self._remember()
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        for child in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        _await_gone(self._descendants.values(), deadline - time.monotonic())
        self._signal(signal.SIGKILL)
        for child in self._running.values():
            child.wait()
        _await_gone(self._descendants.values(), _GRACE_SECONDS)
        self._running.clear()
        self._descendants.clear()

    def _signal(self, number: signal.Signals) -> None:
        for child in reversed(list(self._running.values())):
            if child.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, number)
        for process in self._descendants.values():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _tail(self, name: str) -> str:
        return log_tail(self._logs / f"{name}.log")


def _await_gone(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Wait until none of these runs, or the time is over.

    By looking: `psutil.wait_procs` opens a handle, and not every kernel says of a process that has just gone what
    psutil expects to hear.
    """
    deadline = time.monotonic() + seconds
    while any(_runs(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
