"""The meter of a running server: every answer on the books, or no more answers.

Guarantees: `keep` returns when a record is on the disk. A record that could not be written is owed: while one is,
`require_open` refuses, so that no further answer begins; it is tried again every `AGAIN_SECONDS`, and whatever was
streamed to clients in the meantime is written down when that works again. What is owed lies in memory: a server that is
killed then has given it away, at most what was under way when the disk became full.

    with Books(store, ids) as books:
        Hooks(meter=books.keep, ready=books.require_open)
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Self

from motet.protocols.errors import StorageError
from motet.serving.hooks import Record
from motet.serving.usage.store import UsageStore

AGAIN_SECONDS = 1.0
"""How often what is owed is tried again."""
_LOG = logging.getLogger(__name__)


class Books:
    """Keeps records in a store. Usable from several threads; `close` it, or use it as a context manager."""

    def __init__(self, store: UsageStore, ids: Sequence[str], *, again_seconds: float = AGAIN_SECONDS) -> None:
        """`ids` are the contributions of the composite's experts by expert id, the anchor's digest first."""
        self._store, self._ids, self._again = store, tuple(ids), again_seconds
        self._owed: deque[Record] = deque()
        self._guard, self._closing = threading.Lock(), threading.Event()
        self._catching_up: threading.Thread | None = None
        self._problem = ""

    def keep(self, record: Record) -> None:
        """Keeps what an answer used. Raises StorageError; then it is owed."""
        try:
            self._store.keep(record, self._ids)
        except StorageError as error:
            self._owe(record, str(error))
            raise

    def require_open(self) -> None:
        """Raises StorageError while something is owed. Looks at memory alone."""
        if self._owed:
            raise StorageError(f"{self._problem}; no answer begins until earlier ones are written down")

    def close(self) -> None:
        """Tries what is owed a last time, and says what could not be written."""
        self._closing.set()
        if (thread := self._catching_up) is not None:
            thread.join()
        if self._owed and not self._settled():
            lost = sum(record.generated_tokens for record in self._owed)
            _LOG.error("%s answers of %s tokens are not on the books: %s", len(self._owed), lost, self._problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _owe(self, record: Record, problem: str) -> None:
        with self._guard:
            self._problem = problem
            self._owed.append(record)
            if self._catching_up is None and not self._closing.is_set():
                _LOG.error("no answer begins until this is over: %s", problem)
                self._catching_up = threading.Thread(target=self._catch_up, name="motet-books", daemon=True)
                self._catching_up.start()

    def _catch_up(self) -> None:
        while not self._closing.wait(self._again):
            if self._settled():
                return

    def _settled(self) -> bool:
        """Writes what is owed, the oldest first; whether nothing is left."""
        while True:
            with self._guard:
                if not self._owed:
                    self._catching_up = None
                    _LOG.warning("the books are open again")
                    return True
                record = self._owed[0]
            try:
                if not self._store.holds(record.id):
                    self._store.keep(record, self._ids)
            except StorageError as error:
                self._problem = str(error)
                return False
            with self._guard:
                self._owed.popleft()
