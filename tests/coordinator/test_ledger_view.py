"""A ledger that is only read: what a coordinator writes is seen at the next look, and nothing is left behind."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from motet.coordinator import ledger_view
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.ledger_store import Draft, LedgerStore
from motet.coordinator.ledger_view import LedgerView
from motet.protocols.errors import LedgerError, StorageError


@pytest.fixture
def path(home: CoordinatorHome) -> Path:
    home.close()
    return home.path / "ledger.sqlite"


def append(ledger: LedgerStore, subject: str) -> None:
    ledger.append(lambda _: Draft(kind="composite", subject=subject, body={"members": {}}))


def test_what_is_appended_is_seen_while_the_ledger_is_open_and_after(path: Path) -> None:
    view = LedgerView(path)
    with LedgerStore(path) as ledger:
        assert view.standing().last == ledger.standing().last
        append(ledger, "a")
        assert view.standing().last.subject == "a"
    assert view.standing().last.subject == "a"
    with LedgerStore(path) as ledger:
        append(ledger, "b")
    assert view.standing().last.subject == "b"


def test_nothing_is_left_behind(path: Path) -> None:
    before = sorted(each.name for each in path.parent.iterdir())
    LedgerView(path).standing()
    assert sorted(each.name for each in path.parent.iterdir()) == before


def head_of(path: Path) -> Path:
    return path.with_name("ledger.sqlite.head")


@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [
        (lambda path: head_of(path).unlink(), LedgerError, "head is missing .*Expecting value"),
        (
            lambda path: head_of(path).write_text("{"),
            LedgerError,
            "head is missing .*Expecting property name",
        ),
        (
            lambda path: head_of(path).write_text('{"sequence":9,"digest":"x"}'),
            LedgerError,
            "nothing as entry 9",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b'"sequence":0', b'"sequence":1')),
            LedgerError,
            "chain breaks at entry 1",
        ),
        (lambda path: path.write_bytes(b"no database" * 999), LedgerError, "is damaged: file is not a database"),
        (lambda path: path.unlink(), StorageError, "unable to open"),
        (lambda path: path.write_bytes(b""), StorageError, "no such table"),
    ],
    ids=["no head", "half a head", "another head", "changed", "no database", "gone", "empty"],
)
def test_a_ledger_that_cannot_be_trusted_tells_nothing(
    path: Path, harm: Callable[[Path], object], error: type[Exception], words: str
) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    harm(path)
    with pytest.raises(error, match=words):
        LedgerView(path).standing()


def test_a_ledger_that_somebody_holds_for_himself_is_not_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_view, "BUSY_SECONDS", 0.05)
    view = LedgerView(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("CREATE TABLE extra (a)")
        with pytest.raises(StorageError, match="locked"):
            view.standing()
    assert view.standing().last is not None
