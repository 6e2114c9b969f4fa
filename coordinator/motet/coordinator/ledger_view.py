"""A coordinator's ledger as somebody sees it who only reads it, while the coordinator writes.

Guarantees: nothing is written, no lock is held beyond one reading, and a coordinator is never kept waiting; every link
of the chain and every owner's signature is checked once, and only what is new is read again. The file is opened anew
at every look: one that was put in its place, as from a backup, is noticed, and read from its beginning.

    view = LedgerView(home / "ledger.sqlite")
    newer = view.look()                             # the entries since the last look; LedgerError if the chain breaks
    view.standing.withdrawn
"""

import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from motet.protocols.errors import DocumentError, LedgerError, StorageError
from motet.protocols.ledger import LedgerEntry, Standing, fold

BUSY_SECONDS = 1.0
"""How long a reading waits for whoever holds the database for himself."""
_LOG = logging.getLogger(__name__)


class LedgerView:
    """A ledger that is looked at now and then. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._head = path.with_name(path.name + ".head")
        self.standing = Standing()
        """What all entries add up to. A snapshot: read it, do not change it."""
        self._confirmed: bytes | None = None

    def look(self) -> list[LedgerEntry]:
        """The entries that no look has told yet; all there are, where the ledger was put in the place of another.

        A look that raises changes nothing.

        Raises:
            LedgerError: the chain does not hold, an entry is damaged, or the last one known to be written is missing.
            DocumentError: a document that somebody signed does not hold.
            StorageError: it cannot be read now.
        """
        head = self._read_head()  # before the entries: it is written after them
        with _reading(self.path) as database:
            onto, newer = self._newer(database)
            standing, anew = fold(newer, onto), onto is not self.standing
            if anew or head != self._confirmed or (newer and head is None):
                self._confirm(database, head)
        if anew:
            _LOG.warning("%s was replaced; it was read again from its beginning", self.path)
        self.standing, self._confirmed = standing, head
        return newer

    def _newer(self, database: sqlite3.Connection) -> tuple[Standing, list[LedgerEntry]]:
        """What was read before, if it is still there, and the entries that follow it."""
        last = self.standing.last
        if last is None:
            return self.standing, self._entries(database, 0)
        found = self._entries(database, last.sequence)
        if found and found[0].digest == last.digest:
            return self.standing, found[1:]
        return Standing(), self._entries(database, 0)

    def _entries(self, database: sqlite3.Connection, start: int, end: int = 1 << 62) -> list[LedgerEntry]:
        query = "SELECT entry FROM entries WHERE sequence >= ? AND sequence < ? ORDER BY sequence"
        rows = database.execute(query, (start, end)).fetchall()
        try:
            return [LedgerEntry.parse(text.encode()) for (text,) in rows]
        except (DocumentError, AttributeError) as error:
            raise LedgerError(f"{self.path}: an entry is damaged: {error}; restore a backup") from error

    def _confirm(self, database: sqlite3.Connection, head: bytes | None) -> None:
        """The head file names the last entry known to be written: one that the database must hold."""
        sequence, digest = self._named(head)
        found = [entry.digest for entry in self._entries(database, sequence, sequence + 1)]
        if found != [digest]:
            raise LedgerError(
                f"{self.path}: saw {found[0] if found else 'nothing'} as entry {sequence}, wanted {digest} as "
                f"{self._head.name} says: the ledger was cut or replaced outside of motet; restore both files from "
                "one backup"
            )

    def _named(self, head: bytes | None) -> tuple[int, str]:
        try:
            named = json.loads(head or b"")
            return int(named["sequence"]), str(named["digest"])
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(
                f"{self._head} is missing or not readable: {error}; restore it with the ledger's backup"
            ) from error

    def _read_head(self) -> bytes | None:
        try:
            return self._head.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {self._head}: {error.strerror}; check its rights") from error


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A ledger's database, of which everything is read in one transaction. Raises StorageError and LedgerError.

    Where there is no log beside it, nobody is writing: then it is opened as a file that does not change, for SQLite
    would make the log, and its index, for a mere reader. If somebody begins to write in that moment, what is read may
    be torn; it then breaks the chain, and is whole at the next look.
    """
    log = path.with_name(path.name + "-wal")
    try:
        how = "mode=ro" if log.stat().st_size else "mode=ro&immutable=1"
    except FileNotFoundError:
        how = "mode=ro&immutable=1"
    except OSError as error:
        raise StorageError(f"cannot look at {log}: {error.strerror}; check its rights") from error
    try:
        address = f"file:{quote(str(path.absolute()))}?{how}"
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as database:
            database.execute("BEGIN")
            yield database
    except sqlite3.OperationalError as error:
        raise StorageError(f"cannot read {path}: {error}; check its rights, and who holds it") from error
    except sqlite3.DatabaseError as error:
        raise LedgerError(f"{path} is damaged: {error}; restore a backup") from error
