"""The engine's thread: takes jobs in from any thread, and steps the batch while there is one.

Guarantees: no more than `queue` jobs wait, one more is refused with the time after which to try again; a job that was
taken is told of until each of its samples has finished, or its ticket is cancelled, also if the thread comes to an end
that nobody foresaw; an error in a pass ends the sequences of that pass with "error" and nothing else.

    with Engine(composite, max_batch=16, queue=64) as engine:
        ticket = engine.submit(job, deliver)              # deliver(Step), from the engine's thread: do not block in it
        engine.cancel(ticket)
        engine.drain(30.0)                                # takes nothing more in; waits for those that were taken
"""

import logging
import math
import threading
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from motet.serving.engine.batch import Batch, Withdrawn, tell_unbegun
from motet.serving.engine.job import Closing, FinishReason, Job, QueueFull
from motet.serving.engine.loading import Composite
from motet.serving.engine.network import Network
from motet.serving.engine.prefixes import Prefixes
from motet.serving.engine.sequence import Deliver, Ticket
from motet.serving.hooks import nobody

PREFIX_TOKENS = 16384
"""Positions kept of sequences that have ended."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy the engine is: jobs waiting, sequences running, positions kept to be used again, passes so far."""

    waiting: int
    running: int
    kept: int
    passes: int


class Engine:
    """A composite that generates."""

    def __init__(
        self,
        composite: Composite,
        *,
        max_batch: int = 16,
        queue: int = 64,
        prefix_tokens: int = PREFIX_TOKENS,
        withdrawn: Withdrawn = nobody,
    ) -> None:
        self.max_batch, self.queue = max_batch, queue
        self._batch = Batch(
            Network(composite.model),
            composite.tokenizer,
            max_batch=max_batch,
            prefixes=Prefixes(tokens=prefix_tokens),
            ends=composite.ends,
            withdrawn=withdrawn,
        )
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closing = self._ended = self._failed = False
        self._passes = 0
        self._thread = threading.Thread(target=self._run, name="motet-engine", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, job: Job, deliver: Deliver) -> Ticket:
        """Takes a job in. Raises QueueFull, and Closing when the engine is being stopped."""
        ticket = Ticket(job, deliver)
        with self._changed:
            if self._failed:
                raise Closing("the model's thread has ended, the server's log says why; start the server again")
            if self._closing or not self._thread.is_alive():
                raise Closing("the server is being stopped, so it takes no more requests; try another one, or later")
            if len(self._waiting) >= self.queue:
                raise self._full()
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """The client has gone: the ticket is told of no more, and its places are free before the next pass."""
        ticket.cancelled = True
        with self._changed:
            self._changed.notify_all()

    @property
    def taking(self) -> bool:
        """Whether it takes jobs in."""
        return not self._closing and not self._failed and self._thread.is_alive()

    def load(self) -> Load:
        """How busy it is."""
        with self._changed:
            return Load(
                waiting=len(self._waiting),
                running=len(self._batch.running),
                kept=self._batch.prefixes.tokens,
                passes=self._passes,
            )

    def drain(self, seconds: float) -> bool:
        """Takes nothing more in, and waits until all that was taken has ended; whether it has."""
        with self._changed:
            self._closing = True
            return self._changed.wait_for(lambda: not self._waiting and not self._batch.running, timeout=seconds)

    def close(self) -> None:
        """Ends everything at once, as cancelled, and the thread."""
        with self._changed:
            self._closing = self._ended = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _full(self) -> QueueFull:
        """Half of the queue should have moved by then."""
        seconds = min(60, max(1, math.ceil(self._batch.seconds * self.queue / (2 * self.max_batch))))
        return QueueFull(
            f"saw {len(self._waiting)} requests waiting, of {self.queue} at most; try again in {seconds} s",
            retry_after=seconds,
        )

    def _run(self) -> None:
        try:
            while not self._ended:
                try:
                    self._go_on()
                except Exception:  # what is not a sequence's own trouble: nobody can be answered now, others come
                    _LOG.exception("the engine failed; everybody who is there is told so")
                    self._end_everybody("error")
        except BaseException:
            _LOG.critical("the engine's thread has ended; the server takes no more requests", exc_info=True)
        finally:
            with self._changed:
                self._failed = not self._ended
            self._end_everybody("error" if self._failed else "cancelled")

    def _go_on(self) -> None:
        if self._ready():
            self._batch.step()
            self._passes += 1

    def _end_everybody(self, reason: FinishReason) -> None:
        with self._changed:
            for ticket in self._waiting:
                tell_unbegun(ticket, reason)
            self._waiting.clear()
            self._batch.end_all(reason)
            self._changed.notify_all()  # whoever drains

    def _ready(self) -> bool:
        """Waits for something to do, and takes in whom there is a place for; False at the end."""
        with self._changed:
            while not self._ended:
                self._batch.end_cancelled()
                self._clear_waiting()
                while self._waiting and self._batch.has_place(self._waiting[0].job):
                    self._batch.begin(self._waiting.popleft())
                if self._batch.running:
                    return True
                self._changed.notify_all()  # whoever drains
                self._changed.wait()
            return False

    def _clear_waiting(self) -> None:
        gone = self._batch.gone(list(self._waiting))
        for ticket in gone:
            tell_unbegun(ticket, "expert_withdrawn")
        self._waiting = deque(each for each in self._waiting if not each.cancelled and each not in gone)
