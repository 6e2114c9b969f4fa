"""A disk that is full: no answer begins until what was given is on the books, and nothing is booked twice."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from motet.protocols.errors import StorageError
from motet.serving.engine.loading import load_composite
from motet.serving.usage.books import Books
from motet.serving.usage.store import Period, UsageStore

from .conftest import NAME
from .federated import found_federation, served
from .test_usage import IDS, record

ONE = (0.5, 0.25, 0.25)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UsageStore]:
    with UsageStore(tmp_path / "usage.sqlite") as opened:
        yield opened


def fill(store: UsageStore) -> None:
    """From now on the disk is full."""
    store._database.execute("PRAGMA journal_mode = DELETE")  # so that not even the log has room
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    number = 100_000 + store.total(Period()).answers
    while True:
        try:
            store.keep(record(number := number + 1, ONE), IDS)
        except StorageError:
            return


def clear(store: UsageStore) -> None:
    """There is room again."""
    store._database.execute("PRAGMA max_page_count = 1000000")


def until(met: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_open(books: Books) -> bool:
    try:
        books.require_open()
    except StorageError:
        return False
    return True


def test_after_a_failed_write_nothing_begins_until_all_that_is_owed_is_written(store: UsageStore) -> None:
    with Books(store, IDS, again_seconds=0.02) as books:
        books.keep(record(0, ONE))
        assert is_open(books)
        fill(store)
        before = store.total(Period()).answers
        for number in (1, 2):
            with pytest.raises(StorageError, match="full"):
                books.keep(record(number, ONE))
        with pytest.raises(StorageError, match="no answer begins until"):
            books.require_open()
        time.sleep(0.1)
        assert not is_open(books)
        clear(store)
        until(lambda: is_open(books))
        assert store.total(Period()).answers == before + 2
        assert store.holds("motet-1")
        assert store.holds("motet-2")


def test_what_was_written_though_it_was_told_otherwise_is_not_booked_twice(store: UsageStore) -> None:
    with Books(store, IDS, again_seconds=0.02) as books:
        books.keep(record(0, ONE))
        with pytest.raises(StorageError, match="UNIQUE"):
            books.keep(record(0, ONE))
        until(lambda: is_open(books))
    assert store.total(Period()).answers == 1


def test_what_is_owed_at_the_end_is_written_or_told_of(store: UsageStore, caplog: pytest.LogCaptureFixture) -> None:
    for number, room in ((1, True), (2, False)):
        fill(store)
        books = Books(store, IDS, again_seconds=60)
        with pytest.raises(StorageError):
            books.keep(record(number, ONE, ONE))
        if room:
            clear(store)
        books.close()
        assert store.holds(f"motet-{number}") is room
    assert "1 answers of 2 tokens are not on the books" in caplog.text


def test_a_full_disk_gives_away_no_streams(tmp_path: Path) -> None:
    federation = found_federation(tmp_path)
    asked = {"model": NAME, "prompt": "on", "max_tokens": 4, "stream": True, "temperature": 0}
    with served(load_composite(federation.composite), state=tmp_path / "state") as server:
        store = server.service.hooks.meter.__self__._store
        client = server.client()
        assert len(list(client.completions.create(**asked))) == 4
        fill(store)
        before = store.total(Period()).answers
        with pytest.raises(openai.APIError, match="cannot record"):
            list(client.completions.create(**asked))
        for _ in range(3):
            with pytest.raises(openai.InternalServerError, match="cannot record") as caught:
                client.completions.create(**asked)
            assert (caught.value.status_code, caught.value.code) == (503, "not_recorded")
        assert client.models.list().data  # what costs nothing is told
        clear(store)
        until(lambda: is_open(server.service.hooks.meter.__self__))
        assert len(list(client.completions.create(**asked))) == 4
        assert store.total(Period()).answers == before + 2  # the one that was given away, and the last
