"""The ledger on disk: SQLite, append-only, shared by every process of a coordinator.

Guarantees: an entry is on the disk before `append` returns; two processes never write the same number; a decision
and the entry that records it happen under one lock; and a ledger that was changed, reordered or cut at either end
outside of motet does not open. (Whoever can rewrite the database *and* the head file beside it can still start
another history: the receipts that owners hold are what convicts him.)

    ledger = LedgerStore(home / "ledger.sqlite")          # LedgerError unless the whole chain holds
    entry = ledger.append(lambda standing: Draft(kind="refused", subject=digest, body=body))
    ledger.standing().active
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from motet.coordinator.databases import connect
from motet.protocols.canonical import canonical_json, write_atomically
from motet.protocols.errors import DocumentError, LedgerError, SignatureError, StorageError
from motet.protocols.ledger import EntryKind, LedgerEntry, Standing, fold, following
from motet.protocols.locks import locked

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    sequence INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, subject TEXT NOT NULL,
    entry TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS by_subject ON entries (kind, subject);
CREATE TRIGGER IF NOT EXISTS never_changed BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'ledger entries are never changed'); END;
CREATE TRIGGER IF NOT EXISTS never_deleted BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'ledger entries are never deleted'); END;
"""
_BUSY_SECONDS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """What the next entry is to say; the ledger adds its place in the chain and the time."""

    kind: EntryKind
    subject: str
    body: dict[str, Any]


Decision = Callable[[Standing], Draft | LedgerEntry]
"""Looks at the standing under the ledger's lock; returns what to append, or the entry that says it already."""


class LedgerStore:
    """An open ledger. Usable from several threads; `close` it, or use it as a context manager.

    Raises:
        LedgerError: the database is damaged, or its chain does not hold.
        StorageError: the disk is full or not writable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._head = path.with_name(path.name + ".head")
        self._guard = threading.RLock()
        self._standing = Standing()
        self._database: sqlite3.Connection | None = None
        try:
            with self._errors():
                self._database = _connect(path)
            with self._locked():
                self._refresh()
                self._check_head()
        except BaseException:
            self.close()
            raise

    def standing(self) -> Standing:
        """What all entries add up to, those of other processes included. A snapshot: read it, do not change it."""
        with self._guard:
            self._refresh()
            return self._standing

    def append(self, decide: Decision) -> LedgerEntry:
        """Append what `decide` returns of the standing, or nothing if it returns an entry that is there.

        What `decide` raises passes through, and nothing is appended.
        """
        with self._locked():
            self._refresh()
            decided = decide(self._standing)
            if isinstance(decided, LedgerEntry):
                return decided
            entry = following(
                self._standing.last, kind=decided.kind, subject=decided.subject, body=decided.body, at=_now()
            )
            standing = fold([entry], self._standing)
            self._insert(entry)
            self._standing = standing
            self._write_head(entry)
            return entry

    def find(self, kind: EntryKind, subject: str) -> LedgerEntry | None:
        """The latest entry of this kind about this subject, None if there is none."""
        rows = self._rows(
            "SELECT sequence, digest, entry FROM entries WHERE kind = ? AND subject = ? ORDER BY sequence DESC LIMIT 1",
            kind,
            subject,
        )
        return next((_entry(*row) for row in rows), None)

    def newest_first(self, kind: EntryKind) -> Iterator[LedgerEntry]:
        """The entries of this kind, the latest first, each read when it is asked for."""
        below: int | None = None
        while rows := self._rows(
            "SELECT sequence, digest, entry FROM entries WHERE kind = ? AND (? IS NULL OR sequence < ?) "
            "ORDER BY sequence DESC LIMIT 1",
            kind,
            below,
            below,
        ):
            entry = _entry(*rows[0])
            yield entry
            below = entry.sequence

    def entries(self, start: int = 0) -> list[LedgerEntry]:
        """The entries from number `start` on."""
        rows = self._rows("SELECT sequence, digest, entry FROM entries WHERE sequence >= ? ORDER BY sequence", start)
        return [_entry(*row) for row in rows]

    def close(self) -> None:
        """Let go of the database."""
        with self._guard:
            if self._database is not None:
                self._database.close()
                self._database = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refresh(self) -> None:
        """Fold in what was appended since the last look, by this process or another."""
        start = 0 if self._standing.last is None else self._standing.last.sequence + 1
        if not (newer := self.entries(start)):
            return
        try:
            self._standing = fold(newer, self._standing)
        except SignatureError as error:
            raise LedgerError(f"{self.path}: a document kept in the ledger was changed: {error}") from error

    def _insert(self, entry: LedgerEntry) -> None:
        row = (entry.sequence, entry.digest, entry.kind, entry.subject, entry.canonical().decode())
        with self._errors():
            database = self._open()
            database.execute("BEGIN IMMEDIATE")
            try:
                database.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: object) -> list[tuple[int, str, str]]:
        with self._guard, self._errors():
            return self._open().execute(query, values).fetchall()

    def _check_head(self) -> None:
        """The head file names the last entry known to be written: one that the database must still hold."""
        try:
            head = json.loads(self._head.read_bytes())
            sequence, digest = int(head["sequence"]), str(head["digest"])
        except FileNotFoundError:
            sequence, digest = -1, ""
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{self._head} is not readable: {error}; restore it with the ledger's backup") from error
        last = self._standing.last
        if last is None and sequence < 0:
            return
        found = next((entry.digest for entry in self.entries(max(sequence, 0))), None)
        if sequence < 0 or found != digest:
            raise LedgerError(
                f"{self.path}: saw {found} as entry {sequence}, wanted {digest} as {self._head.name} says: the ledger "
                "was cut or replaced outside of motet; restore both files from one backup"
            )
        if last is not None and last.sequence > sequence:
            self._write_head(last)

    def _write_head(self, entry: LedgerEntry) -> None:
        write_atomically(self._head, canonical_json({"sequence": entry.sequence, "digest": entry.digest}))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all threads and processes; SQLite's own lock would not cover the decision and the head file."""
        with self._guard, locked(self.path.with_name(self.path.name + ".lock")):
            yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"cannot use {self.path}: {error}; free space there, or let go of its lock, and try again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{self.path} is damaged: {error}; restore it from a backup") from error

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            raise StorageError(f"{self.path} was closed; open the ledger again")
        return self._database


def _connect(path: Path) -> sqlite3.Connection:
    database = connect(path, busy_seconds=_BUSY_SECONDS)
    try:
        database.executescript(_SCHEMA)
        (damage,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
    except BaseException:
        database.close()
        raise
    return database


def _entry(sequence: int, digest: str, text: str) -> LedgerEntry:
    try:
        entry = LedgerEntry.parse(text.encode())
    except (DocumentError, AttributeError) as error:  # a damaged file can hold other types than its schema allows
        raise LedgerError(f"the ledger's entry {sequence} is damaged: {error}; restore a backup") from error
    if entry.sequence != sequence or entry.digest != digest:
        raise LedgerError(f"the ledger's entry {sequence} was changed outside of motet; restore a backup")
    return entry


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
