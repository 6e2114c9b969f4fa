"""The ledger on disk: shared by processes, closed to editors, whole after any kill."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from motet.coordinator.home import CoordinatorHome
from motet.coordinator.ledger_store import Draft, LedgerStore
from motet.protocols.errors import LedgerError, MotetError, StorageError

APPEND = """
import sys
from pathlib import Path
from motet.coordinator.ledger_store import Draft, LedgerStore
with LedgerStore(Path(sys.argv[1])) as ledger:
    for number in range(int(sys.argv[3])):
        ledger.append(lambda _: Draft(kind="composite", subject=f"{sys.argv[2]}-{number}", body={}))
        print(number, flush=True)
"""


@pytest.fixture
def path(home: CoordinatorHome) -> Path:
    home.close()
    return home.path / "ledger.sqlite"


def note(subject: str) -> Draft:
    return Draft(kind="composite", subject=subject, body={"members": {}})


def appender(path: Path, name: str, count: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", APPEND, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_what_is_appended_is_there_for_all(path: Path) -> None:
    with LedgerStore(path) as one, LedgerStore(path) as two:
        entry = one.append(lambda _: note("a"))
        assert two.entries()[-1] == entry == two.standing().last
        assert two.append(lambda standing: note(f"after {standing.last.sequence}")).subject == "after 1"
        assert one.find("composite", "after 1") == one.standing().last
        assert one.find("composite", "never") is None


def test_a_decision_may_decline(path: Path) -> None:
    with LedgerStore(path) as ledger:
        entry = ledger.append(lambda _: note("a"))
        assert ledger.append(lambda _: entry) == entry

        def refuse(_: object) -> Draft:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            ledger.append(refuse)
        assert len(ledger.entries()) == 2
        ledger.append(lambda _: note("b"))


def test_an_entry_that_contradicts_is_not_written(path: Path) -> None:
    with LedgerStore(path) as ledger:
        with pytest.raises(LedgerError):
            ledger.append(lambda _: Draft(kind="charter", subject="another", body={}))
        with pytest.raises(LedgerError):
            ledger.append(lambda _: Draft(kind="admitted", subject="x", body={}))
        assert len(ledger.entries()) == 1


@pytest.mark.slow
def test_two_processes_append_without_a_gap(path: Path) -> None:
    processes = [appender(path, name, 25) for name in ("left", "right")]
    assert [process.communicate()[0].count(b"\n") for process in processes] == [25, 25]
    with LedgerStore(path) as ledger:
        subjects = [entry.subject for entry in ledger.entries()[1:]]
    assert sorted(subjects) == sorted(f"{name}-{number}" for name in ("left", "right") for number in range(25))
    assert [subject for subject in subjects if "left" in subject] == [f"left-{number}" for number in range(25)]


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.0, 0.013, 0.05, 0.11])
def test_kill_9_loses_nothing_that_was_said(path: Path, wait: float) -> None:
    process = appender(path, "doomed", 100000)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(wait)
    os.kill(process.pid, signal.SIGKILL)
    said = 1 + process.communicate()[0].count(b"\n")
    with LedgerStore(path) as ledger:
        assert said <= len(ledger.entries()) - 1 <= said + 1
        ledger.append(lambda _: note("goes on"))


@pytest.mark.parametrize("statement", ["UPDATE entries SET subject = 'x'", "DELETE FROM entries"])
def test_the_database_itself_forbids_editing(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as database, pytest.raises(sqlite3.IntegrityError, match="ledger entries are never"):
        database.execute(statement)
    database.close()


def edited(path: Path, *statements: str) -> None:
    """What somebody with the file and some patience can do."""
    database = sqlite3.connect(path, isolation_level=None)
    for statement in ("DROP TRIGGER never_changed", "DROP TRIGGER never_deleted", *statements):
        database.execute(statement)
    database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE sequence = 3",
        "DELETE FROM entries WHERE sequence = 2",
        "DELETE FROM entries WHERE sequence = 0",
        "DELETE FROM entries",
        "DELETE FROM entries WHERE sequence > 1",
        "UPDATE entries SET entry = replace(entry, '\"c\"', '\"x\"')",
        "UPDATE entries SET entry = replace(entry, '\"b\"', '\"x\"')",
        "UPDATE entries SET entry = 'x' WHERE sequence = 1",
        "UPDATE entries SET sequence = 9 WHERE sequence = 3",
        "UPDATE entries SET digest = 'x' WHERE sequence = 2",
    ],
)
def test_a_tampered_ledger_does_not_open(path: Path, statement: str) -> None:
    with LedgerStore(path) as ledger:
        for subject in "abc":
            ledger.append(lambda _, subject=subject: note(subject))
    edited(path, statement)
    with pytest.raises(LedgerError):
        LedgerStore(path)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_file_does_not_open(path: Path, keep: float) -> None:
    with LedgerStore(path) as ledger:
        for number in range(40):
            ledger.append(lambda _, number=number: note(f"entry {number}"))
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(LedgerError):
        LedgerStore(path)


def test_a_lost_or_garbled_head_is_noticed(path: Path) -> None:
    head = path.with_name("ledger.sqlite.head")
    head.write_text("x")
    with pytest.raises(LedgerError, match="not readable"):
        LedgerStore(path)
    head.unlink()
    with pytest.raises(LedgerError, match="cut or replaced"):
        LedgerStore(path)


def test_a_head_that_a_crash_left_behind_catches_up(path: Path) -> None:
    head = path.with_name("ledger.sqlite.head")
    with LedgerStore(path) as ledger:
        ledger.append(lambda _: note("a"))
        behind = head.read_bytes()
        ledger.append(lambda _: note("b"))
    head.write_bytes(behind)
    with LedgerStore(path) as ledger:
        assert len(ledger.entries()) == 3
    assert head.read_bytes() != behind


def test_a_full_disk_is_said_and_the_chain_holds(path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from motet.coordinator.ledger_store import Draft, LedgerStore\n"
        "from motet.protocols.errors import StorageError\n"
        "ledger = LedgerStore(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))\n"
        "try:\n"
        "    while True: ledger.append(lambda _: Draft(kind='composite', subject='x', body={'filler': 'y' * 5000}))\n"
        "except StorageError as error: sys.exit(f'said: {error}')\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert "said: cannot" in ran.stderr, ran.stderr
    with LedgerStore(path) as ledger:
        ledger.append(lambda _: note("room again"))


def test_a_closed_ledger_says_so(path: Path) -> None:
    ledger = LedgerStore(path)
    ledger.close()
    with pytest.raises(StorageError, match="open the ledger again"):
        ledger.standing()


def test_errors_are_ours(path: Path, tmp_path: Path) -> None:
    makers: list[Callable[[], object]] = [lambda: LedgerStore(tmp_path / "no" / "such" / "folder.sqlite")]
    for make in makers:
        with pytest.raises(MotetError):
            make()
