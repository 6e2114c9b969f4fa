"""Several processes that share a training, one accelerator each, or cores of the CPU: started, watched and ended.

Guarantees: a rank that dies, of whatever, ends the others at once, and what is raised names it; ranks never outlive the
process that started them; they stop together, between the same two steps, and answer no signal of a terminal.

    run_ranks(work, (material, config, folder), ranks=2, on_progress=show, should_stop=stopping.is_set)

    def work(material, config, folder, tell, should_stop):      # at a module's top, called in every rank
        ...
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed, multiprocessing

from motet.protocols.errors import MotetError, TrainingError

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 3.0
"""How long the others may take to say what they saw of a rank's end, and then to end themselves."""

Work = Callable[..., object]


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a rank says before it ends; `kind` is None for what is no error of ours."""

    kind: type[MotetError] | None
    message: str


def run_ranks(
    work: Work,
    arguments: Sequence[Any],
    *,
    ranks: int,
    on_progress: Callable[[Any], None],
    should_stop: Callable[[], bool],
) -> None:
    """Call `work(*arguments, tell, should_stop)` in so many processes, and wait for all of them.

    Args:
        work: a function at a module's top; `tell` reaches `on_progress` from the first rank, and `should_stop` answers
            the same in every rank if all of them ask equally often.
        arguments: what it is called with; pickled, tensors shared.
        ranks: how many.
        on_progress: told in this process what the first rank tells.
        should_stop: asked in this process.

    Raises:
        MotetError: what a rank raised.
        TrainingError: a rank was killed, or ended with something else.
    """
    with TemporaryDirectory(prefix="motet-ranks-") as folder:
        store = Path(folder) / "store"
        troupe = _Troupe.start(work, arguments, ranks, store)
        try:
            troupe.watch(on_progress, should_stop)
        finally:
            troupe.end()


@dataclass(slots=True, eq=False)
class _Troupe:
    """The processes and a pipe to each; `failures` by rank."""

    processes: list[BaseProcess]
    pipes: list[Connection]
    failures: dict[int, _Failure]

    @classmethod
    def start(cls, work: Work, arguments: Sequence[Any], ranks: int, store: Path) -> "_Troupe":
        context = multiprocessing.get_context("spawn")  # CUDA cannot be forked
        troupe = cls(processes=[], pipes=[], failures={})
        try:
            for rank in range(ranks):
                here, there = context.Pipe()
                place = _Place(rank=rank, ranks=ranks, store=str(store), threads=torch.get_num_threads())
                process = context.Process(target=_enter, args=(place, there, work, tuple(arguments)), daemon=True)
                process.start()
                there.close()
                troupe.processes.append(process)
                troupe.pipes.append(here)
        except BaseException:
            troupe.end()
            raise
        return troupe

    def watch(self, on_progress: Callable[[Any], None], should_stop: Callable[[], bool]) -> None:
        """Until all ended well; raises for the first that did not."""
        asked = False
        while any(process.exitcode is None for process in self.processes):
            awaited: list[Any] = [process.sentinel for process in self._running()]
            wait([*awaited, self.pipes[0]], timeout=_POLL_SECONDS)
            self._read(on_progress)
            if not asked and should_stop():
                asked = True
                with suppress(OSError):
                    self.pipes[0].send("stop")
            if any(process.exitcode for process in self.processes):
                raise self._error(on_progress)
        self._read(on_progress)
        if any(process.exitcode for process in self.processes):
            raise self._error(on_progress)

    def end(self) -> None:
        """Kill who is still there; nobody else would be waiting for it."""
        for process in self._running():
            process.kill()
        for process in self.processes:
            process.join()
        for pipe in self.pipes:
            pipe.close()

    def _running(self) -> list[BaseProcess]:
        return [process for process in self.processes if process.exitcode is None]

    def _read(self, on_progress: Callable[[Any], None]) -> None:
        for rank, pipe in enumerate(self.pipes):
            with suppress(EOFError, OSError):
                while pipe.poll():
                    told = pipe.recv()
                    if isinstance(told, _Failure):
                        self.failures[rank] = told
                    else:
                        on_progress(told)

    def _error(self, on_progress: Callable[[Any], None]) -> MotetError:
        """The first cause: a rank that was killed, then what a rank raised, then what broke for want of the others."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._running() and time.monotonic() < deadline:
            wait([process.sentinel for process in self._running()], timeout=_POLL_SECONDS)
        self._read(on_progress)
        for rank, process in enumerate(self.processes):
            if (code := process.exitcode) is not None and code < 0:
                return self._lost(rank, f"was killed by {_signal_name(-code)}")
        for failure in self.failures.values():
            if failure.kind is not None:
                return failure.kind(failure.message)
        rank = next(number for number, process in enumerate(self.processes) if process.exitcode)
        said = self.failures.get(rank, _Failure(None, f"exit code {self.processes[rank].exitcode}"))
        return self._lost(rank, f"ended with {said.message}")

    def _lost(self, rank: int, how: str) -> TrainingError:
        return TrainingError(
            f"saw rank {rank} of {len(self.processes)}, which {how}; the last checkpoint is kept: look for what ended "
            "it (memory?), and start again to go on from there"
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Which of how many a process is, and the file they meet through."""

    rank: int
    ranks: int
    store: str
    threads: int

    def take(self) -> None:
        """Join the others, and say so to accelerate in the words that launchers use."""
        for name, value in (("RANK", self.rank), ("LOCAL_RANK", self.rank)):
            os.environ[name] = str(value)
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ[name] = str(self.ranks)
        torch.set_num_threads(self.threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))  # else accelerate takes all cores, with a warning
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if sys.platform == "linux" and backend == "gloo":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on this machine, whose name may resolve to nothing
        distributed.init_process_group(
            backend, init_method=f"file://{self.store}", rank=self.rank, world_size=self.ranks
        )


def _enter(place: _Place, pipe: Connection, work: Work, arguments: tuple[Any, ...]) -> None:
    """A rank's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's goes to all; who started us passes it on
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(progress: Any) -> None:  # noqa: ANN401 - whatever the work tells
        if place.rank == 0:
            pipe.send(progress)

    try:
        place.take()
        work(*arguments, tell, lambda: _agreed_stop(place, pipe))
        distributed.barrier()
        distributed.destroy_process_group()
    except MotetError as error:
        _fail(pipe, _Failure(type(error), str(error)))
    except Exception as error:
        _fail(pipe, _Failure(None, f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"))


def _fail(pipe: Connection, failure: _Failure) -> None:
    with suppress(OSError):
        pipe.send(failure)
    os._exit(1)  # what waits for the others would keep an orderly end waiting


def _agreed_stop(place: _Place, pipe: Connection) -> bool:
    """What the first rank was told, told to all."""
    told = torch.zeros(1)
    if place.rank == 0 and pipe.poll():
        told += 1
    distributed.broadcast(told, src=0)
    return bool(told)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None  # noqa: S101 - this runs in a child alone
    wait([parent.sentinel])
    os._exit(1)
