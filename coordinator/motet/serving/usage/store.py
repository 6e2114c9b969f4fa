"""The usage on disk: SQLite in WAL mode with synchronous=FULL, a row for every answer.

Guarantees: a record is on the disk when `keep` returns; an answer's gate mass is kept in whole microtokens, millionths
of a generated token, which sum to exactly its generated tokens, so that sums over any period are exact; times of
keeping never go back, and what a period held when it was asked for is what it holds for ever, though names and owners
of contributions may become known later.

    store.introduce([Expert(contribution=digest, name="law", owner=None)])
    store.keep(record, ids)                             # ids: by expert id, the anchor's or a contribution's digest
    store.total(Period(until=store.now()), owner=key)   # experts, answers, tokens
"""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from motet.coordinator.databases import connect
from motet.protocols.canonical import storage_errors
from motet.protocols.errors import StorageError
from motet.serving.hooks import Record
from motet.serving.usage.entries import Entry, entry_of

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kept INTEGER NOT NULL,
    created INTEGER NOT NULL, tenant TEXT, endpoint TEXT NOT NULL, model TEXT NOT NULL, composite TEXT NOT NULL,
    expert_set TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, generated_tokens INTEGER NOT NULL,
    finish_reasons TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS by_time ON answers (kept);
CREATE INDEX IF NOT EXISTS by_tenant ON answers (tenant, kept);
CREATE TABLE IF NOT EXISTS mass (
    answer INTEGER NOT NULL REFERENCES answers (sequence), contribution TEXT NOT NULL, microtokens INTEGER NOT NULL,
    PRIMARY KEY (answer, contribution)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS experts (
    contribution TEXT PRIMARY KEY, name TEXT NOT NULL, owner TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS told (until INTEGER NOT NULL) STRICT;
"""
_BUSY_SECONDS = 30
_ANYBODY = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Expert:
    """An expert of a composite: the anchor's or its contribution's digest, its name, its owner's key if it is known."""

    contribution: str
    name: str
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """From `since` on and before `until`, in milliseconds since the epoch."""

    since: int = 0
    until: int = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertUsage:
    """What one expert took part in.

    answers: whose sets it was in; generated_tokens: of these answers.
    microtokens: its gate mass.
    """

    expert: Expert
    answers: int
    generated_tokens: int
    microtokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """All answers of a period, and the experts in them by name."""

    period: Period
    answers: int
    prompt_tokens: int
    generated_tokens: int
    experts: tuple[ExpertUsage, ...]


class UsageStore:
    """An open store. Usable from several threads and processes; `close` it, or use it as a context manager."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Raises StorageError when it cannot be used: the disk is full or not writable, or the file is damaged."""
        self.path, self._clock = path, clock
        self._guard, self._reading = threading.Lock(), threading.Lock()
        with storage_errors(path, new=True):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._database = _connect(path)
            self._reader = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    def introduce(self, experts: Sequence[Expert]) -> None:
        """Says what experts are called and whose they are; an owner once known is not forgotten."""
        rows = [(each.contribution, each.name, each.owner) for each in experts]
        with self._writing() as database:
            database.executemany(
                "INSERT INTO experts VALUES (?, ?, ?) ON CONFLICT (contribution) DO UPDATE SET "
                "name = excluded.name, owner = coalesce(excluded.owner, owner)",
                rows,
            )

    def keep(self, record: Record, ids: Sequence[str]) -> None:
        """Keeps what an answer used; `ids` are its experts' contributions, the anchor's digest first.

        Raises StorageError; then nothing of it is kept.
        """
        self.enter(entry_of(record, ids))

    def enter(self, entry: Entry) -> None:
        """Keeps an answer's row. Raises StorageError, also for one that is kept already; then nothing is changed."""
        row = (entry.id, entry.created, entry.tenant, entry.endpoint, entry.model, entry.composite)
        row_end = (entry.expert_set, entry.prompt_tokens, entry.generated_tokens, json.dumps(entry.finish_reasons))
        with self._writing() as database:
            cursor = database.execute(
                "INSERT INTO answers (kept, id, created, tenant, endpoint, model, composite, expert_set, "
                "prompt_tokens, generated_tokens, finish_reasons) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (self._time(database), *row, *row_end),
            )
            mass = [(cursor.lastrowid, contribution, tokens) for contribution, tokens in entry.microtokens.items()]
            database.executemany("INSERT INTO mass VALUES (?, ?, ?)", mass)

    def holds(self, id: str) -> bool:
        """Whether an answer is kept. Raises StorageError."""
        with self._reading, self._errors():
            return self._reader.execute("SELECT 1 FROM answers WHERE id = ?", (id,)).fetchone() is not None

    def now(self) -> int:
        """The time in milliseconds: what is kept from here on is not before it, and what was kept is before it."""
        with self._writing() as database:
            now = self._time(database) + 1
            database.execute("DELETE FROM told")
            database.execute("INSERT INTO told VALUES (?)", (now,))
            return now

    def total(self, period: Period, *, tenant: str | object | None = _ANYBODY, owner: str | None = None) -> Total:
        """What a period holds: of one tenant (None: of requests that had none), of one owner's experts alone.

        However long the adding up takes, answers are kept meanwhile.
        """
        tenants, values = ("", ()) if tenant is _ANYBODY else ("AND tenant IS ?", (tenant,))
        where: tuple[Any, ...] = (period.since, period.until, *values)
        with self._reading, self._errors():
            self._reader.execute("BEGIN")
            try:
                answers = self._reader.execute(_ANSWERS.format(tenants=tenants), where).fetchone()
                experts = self._reader.execute(_EXPERTS.format(tenants=tenants), (*where, owner, owner)).fetchall()
            finally:
                self._reader.execute("ROLLBACK")
        return Total(
            period=period,
            answers=answers[0],
            prompt_tokens=answers[1],
            generated_tokens=answers[2],
            experts=tuple(_usage(*row) for row in experts),
        )

    def close(self) -> None:
        """Lets go of the database."""
        with self._guard, self._reading:
            self._reader.close()
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _time(self, database: sqlite3.Connection) -> int:
        """Now, but not before the last answer or the last time that was told. Only while nobody else writes."""
        (last,) = database.execute("SELECT coalesce(max(kept), 0) FROM answers").fetchone()
        (told,) = database.execute("SELECT coalesce(max(until), 0) FROM told").fetchone()
        return max(int(last), int(told), int(self._clock() * 1000))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All of it is written, or nothing; alone among threads and processes."""
        with self._guard, self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot use {self.path}: {error}; free space there, or restore the file from a backup"
            ) from error


_ANSWERS = """
SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(generated_tokens), 0) FROM answers
WHERE kept >= ? AND kept < ? {tenants}"""
_EXPERTS = """
SELECT mass.contribution, coalesce(name, 'unknown'), owner, count(*), sum(generated_tokens), sum(microtokens)
FROM answers JOIN mass ON mass.answer = answers.sequence LEFT JOIN experts USING (contribution)
WHERE kept >= ? AND kept < ? {tenants} AND (? IS NULL OR owner = ?)
GROUP BY mass.contribution ORDER BY name, mass.contribution"""


def _usage(
    contribution: str, name: str, owner: str | None, answers: int, generated_tokens: int, microtokens: int
) -> ExpertUsage:
    expert = Expert(contribution=contribution, name=name, owner=owner)
    return ExpertUsage(expert=expert, answers=answers, generated_tokens=generated_tokens, microtokens=microtokens)


def _connect(path: Path) -> sqlite3.Connection:
    database = connect(path, busy_seconds=_BUSY_SECONDS)
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"saw format {version}, wanted {_VERSION}, of a later release of motet")
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version = {_VERSION}")
    except BaseException:
        database.close()
        raise
    return database
