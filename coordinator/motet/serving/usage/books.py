"""The meter of a running server: every answer on the books, or no more answers.

Guarantees: `keep` returns when a record is on the disk. A record that could not be written to the store is owed: while
one is, `require_open` refuses, so that no further answer begins; it is tried again every `AGAIN_SECONDS`, and whatever
was streamed to clients in the meantime is written down when that works again. What is owed lies in a `Reserve` beside
the store, so that it outlives a server that is killed: whoever opens books there next writes it down first. There is
room in it for all that may be under way, since no answer begins that there is none for.

    with Books(store, ids, max_batch=16, queue=64) as books:
        Hooks(meter=books.keep, ready=books.require_open)
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self

from motet.protocols.errors import StorageError
from motet.serving.api.schemas import MAX_PROMPTS
from motet.serving.hooks import Record
from motet.serving.usage.entries import Entry, entry_of, most_bytes
from motet.serving.usage.reserve import HEAD_BYTES, settle_left, taken
from motet.serving.usage.store import UsageStore

AGAIN_SECONDS = 1.0
"""How often what is owed is tried again."""
_BLOCK = 4096
_LOG = logging.getLogger(__name__)


class Books:
    """Keeps records in a store. Usable from several threads; `close` it, or use it as a context manager."""

    def __init__(
        self,
        store: UsageStore,
        ids: Sequence[str],
        *,
        max_batch: int = 16,
        queue: int = 64,
        again_seconds: float = AGAIN_SECONDS,
    ) -> None:
        """Writes down what servers that were killed owed, and takes its own room on the disk.

        Args:
            store: where records are kept.
            ids: the contributions of the composite's experts by expert id, the anchor's digest first.
            max_batch, queue: how many sequences are generated at once, and how many prompts may wait.
            again_seconds: how often what is owed is tried again.

        Raises:
            StorageError: what was owed cannot be written down, or there is no room.
        """
        self._store, self._ids, self._again = store, tuple(ids), again_seconds
        self._owed: deque[Entry] = deque()
        self._guard, self._closing = threading.Lock(), threading.Event()
        self._catching_up: threading.Thread | None = None
        self._problem = ""
        size = reserve_bytes(self._ids, max_batch=max_batch, queue=queue)
        self._answer_bytes, self._choice_bytes = _needed(self._ids)
        self._reserve = taken(_reserves(store), size, partial(_settle, store))

    def keep(self, record: Record) -> None:
        """Keeps what an answer used. Raises StorageError; then it is owed."""
        entry = entry_of(record, self._ids)
        try:
            self._store.enter(entry)
        except StorageError as error:
            self._owe(entry, str(error))
            raise

    def require_open(self, under_way: Sequence[int] = ()) -> None:
        """Raises StorageError while something is owed, or there would be no room to owe it. Looks at memory alone.

        `under_way` has the number of choices of each answer whose record is to be kept.
        """
        if self._problem:
            raise StorageError(f"{self._problem}; no answer begins until earlier ones are written down")
        needed = len(under_way) * self._answer_bytes + sum(under_way) * self._choice_bytes
        if needed > (size := self._reserve.size):
            raise StorageError(
                f"saw {len(under_way)} answers that are to be written down, {needed:,} bytes, wanted {size:,} at most, "
                f"the room for them in {self._reserve.path} if the disk becomes full; see why the books are so slow"
            )

    def close(self) -> None:
        """Tries what is owed a last time, and says what could not be written."""
        self._closing.set()
        if (thread := self._catching_up) is not None:
            thread.join()
        if self._problem and not self._settled():
            tokens = sum(entry.generated_tokens for entry in self._owed)
            _LOG.error(
                "%s answers of %s tokens are not on the books: %s; what is in %s is written there by the next server",
                *(len(self._owed), tokens, self._problem, self._reserve.path),
            )
        with self._guard:
            self._reserve.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _owe(self, entry: Entry, problem: str) -> None:
        with self._guard:
            self._problem = problem
            self._owed.append(entry)
            try:
                self._reserve.add(entry.to_bytes())
            except StorageError as error:
                _LOG.error("%s lies in memory alone, and is lost if the server is killed now: %s", entry.id, error)
            if self._catching_up is None and not self._closing.is_set():
                _LOG.error("no answer begins until this is over: %s", problem)
                self._catching_up = threading.Thread(target=self._catch_up, name="motet-books", daemon=True)
                self._catching_up.start()

    def _catch_up(self) -> None:
        while not self._closing.wait(self._again):
            if self._settled():
                return

    def _settled(self) -> bool:
        """Writes what is owed, the oldest first; whether nothing is left, neither in memory nor in the reserve."""
        try:
            while True:
                with self._guard:
                    if not self._owed:
                        self._reserve.clear()
                        self._problem, self._catching_up = "", None
                        _LOG.warning("the books are open again")
                        return True
                    entry = self._owed[0]
                _enter(self._store, entry)
                with self._guard:
                    self._owed.popleft()
        except StorageError as error:
            self._problem = str(error)
            return False


def write_down_owed(store: UsageStore) -> None:
    """Writes down what servers of this folder owed when they were killed. Raises StorageError."""
    settle_left(_reserves(store), partial(_settle, store))


def reserve_bytes(ids: Sequence[str], *, max_batch: int, queue: int) -> int:
    """How much is kept free for what may be under way, in whole blocks.

    Twice as many answers as sequences run and prompts wait, for those that have ended may wait for the store; and
    choices for four of the largest requests.
    """
    answer, choice = _needed(ids)
    needed = 2 * (max_batch + queue) * (answer + choice) + 4 * MAX_PROMPTS * max_batch * choice
    return -(-needed // _BLOCK) * _BLOCK


def _needed(ids: Sequence[str]) -> tuple[int, int]:
    """Bytes of an answer in the reserve at most, and of each of its choices beside that."""
    answer = most_bytes(ids, choices=0)
    return HEAD_BYTES + answer, most_bytes(ids, choices=1) - answer


def _reserves(store: UsageStore) -> Path:
    return store.path.with_suffix(".owed")


def _settle(store: UsageStore, path: Path, left: Sequence[bytes]) -> None:
    try:
        for each in left:
            _enter(store, Entry.of(each))
    except StorageError as error:
        raise StorageError(f"cannot write down {len(left)} answers that {path} has: {error}") from error
    _LOG.warning("%s answers that a server still owed when it was killed are on the books", len(left))


def _enter(store: UsageStore, entry: Entry) -> None:
    if not store.holds(entry.id):
        store.enter(entry)
