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
        assert view.look() == ledger.entries()
        assert view.standing == ledger.standing()
        append(ledger, "a")
        assert [entry.subject for entry in view.look()] == ["a"]
        assert view.standing.last.subject == "a"
    assert view.look() == []
    assert view.standing.last.subject == "a"
    with LedgerStore(path) as ledger:
        append(ledger, "b")
        append(ledger, "c")
    assert [entry.subject for entry in view.look()] == ["b", "c"]


def test_nothing_is_left_behind(path: Path) -> None:
    before = sorted(each.name for each in path.parent.iterdir())
    LedgerView(path).look()
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
        LedgerView(path).look()


def test_a_ledger_that_somebody_holds_for_himself_is_not_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_view, "BUSY_SECONDS", 0.05)
    view = LedgerView(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("CREATE TABLE extra (a)")
        with pytest.raises(StorageError, match="locked"):
            view.look()
    assert view.look()


def test_one_that_was_put_in_its_place_is_read_from_its_beginning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    view, backup = LedgerView(path), {file: file.read_bytes() for file in (path, head_of(path))}
    with LedgerStore(path) as ledger:
        append(ledger, "a")
    view.look()
    for file, content in backup.items():
        file.unlink()
        file.write_bytes(content)
    with LedgerStore(path) as ledger:
        append(ledger, "b")  # with the number of the one that is lost
        assert view.look() == ledger.entries()
        assert view.standing == ledger.standing()
        assert view.look() == []
    assert caplog.text.count("it was read again from its beginning") == 1


def test_an_empty_one_in_its_place_is_none(path: Path) -> None:
    view = LedgerView(path)
    view.look()
    path.unlink()
    head_of(path).unlink()
    LedgerStore(path).close()
    with pytest.raises(LedgerError, match="head is missing"):
        view.look()
    assert view.standing.last is not None


def test_what_one_look_could_not_tell_the_next_one_tells(path: Path) -> None:
    view = LedgerView(path)
    before = view.look()
    with LedgerStore(path) as ledger:
        append(ledger, "a")
    head = head_of(path).read_bytes()
    head_of(path).unlink()
    with pytest.raises(LedgerError, match="head is missing"):
        view.look()
    assert view.standing.last == before[-1]
    head_of(path).write_bytes(head)
    assert [entry.subject for entry in view.look()] == ["a"]
