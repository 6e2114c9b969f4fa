"""A disk that is full: no answer begins until what was given is on the books, and nothing is booked twice or lost."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from motet.protocols.errors import StorageError
from motet.serving.engine.loading import load_composite
from motet.serving.hooks import Generated
from motet.serving.usage.books import Books, reserve_bytes
from motet.serving.usage.entries import Entry, entry_of, most_bytes
from motet.serving.usage.reserve import HEAD_BYTES, Reserve
from motet.serving.usage.store import Period, UsageStore

from .conftest import NAME
from .federated import found_federation, served
from .test_reserve import no_file_beyond
from .test_usage import IDS, record

ONE = (0.5, 0.25, 0.25)
OWED = "usage.owed-1"
ROOT = str(Path(__file__).parents[2])


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
    clear(store)
    with Books(store, IDS):
        assert store.holds("motet-2")


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


def killed(books: Books) -> None:
    """As far as its room on the disk can tell."""
    books._closing.set()
    if books._catching_up is not None:
        books._catching_up.join()
    os.close(books._reserve._file)


def owed(store: UsageStore) -> tuple[bytes, ...]:
    reserve = Reserve(store.path.with_name(OWED), 0)
    try:
        return reserve.left
    finally:
        reserve.close()


def test_what_a_killed_server_owed_is_written_down_once(store: UsageStore) -> None:
    books = Books(store, IDS, again_seconds=60)
    fill(store)
    before = store.total(Period()).answers
    for number in (1, 2):
        with pytest.raises(StorageError):
            books.keep(record(number, ONE, tenant="clinic"))
    killed(books)
    assert [Entry.of(each) for each in owed(store)] == [
        entry_of(record(number, ONE, tenant="clinic"), IDS) for number in (1, 2)
    ]
    with pytest.raises(StorageError, match=rf"cannot write down 2 answers that .*{OWED} has: .*full"):
        Books(store, IDS)
    clear(store)
    store.keep(record(1, ONE, tenant="clinic"), IDS)  # as if it had been killed before it could forget that
    with Books(store, IDS) as books:
        assert is_open(books)
        assert store.total(Period()).answers == before + 2
        assert sum(each.microtokens for each in store.total(Period(), tenant="clinic").experts) == 2_000_000
    assert owed(store) == ()


def test_what_was_caught_up_with_is_owed_no_more(store: UsageStore) -> None:
    with Books(store, IDS, again_seconds=0.02) as books:
        fill(store)
        with pytest.raises(StorageError):
            books.keep(record(1, ONE))
        clear(store)
        until(lambda: is_open(books))
    assert owed(store) == ()


def test_an_entry_of_a_later_release_is_not_dropped(store: UsageStore) -> None:
    later = entry_of(record(1, ONE), IDS).to_bytes().replace(b"usage-entry/1", b"usage-entry/2")
    reserve = Reserve(store.path.with_name(OWED), 4096)
    reserve.add(later)
    reserve.close()
    with pytest.raises(StorageError, match=r"an entry that cannot be read \(schema"):
        Books(store, IDS)
    assert owed(store) == (later,)


def test_no_answer_begins_that_there_would_be_no_room_for(store: UsageStore) -> None:
    with Books(store, IDS, max_batch=2, queue=1) as books:
        books.require_open([1] * 6)  # those that run and wait, and as many that wait for the store
        books.require_open([2 * 64] * 3)  # the largest requests
        assert store.path.with_name(OWED).stat().st_size == reserve_bytes(IDS, max_batch=2, queue=1) < 30_000
        for under_way in ([1] * 100, [2000]):
            with pytest.raises(StorageError, match=rf"saw {len(under_way)} answers that are to be written down"):
                books.require_open(under_way)


def test_what_may_be_under_way_fits_into_the_reserve(store: UsageStore) -> None:
    """As many of the largest answers as may begin."""
    one = record(0, *(ONE for _ in range(50)), tenant="t" * 63)
    reason = Generated(tokens=50, finish_reason="expert_withdrawn", shares=one.choices[0].shares)
    under_way: list[int] = []
    with Books(store, IDS, max_batch=2, queue=1, again_seconds=60) as books:
        fill(store)
        try:
            while True:
                books.require_open([*under_way, 7])
                under_way.append(7)
        except StorageError:
            pass
        for number in range(len(under_way)):
            large = record(number, tenant="t" * 63)
            with pytest.raises(StorageError, match="full"):
                books.keep(replace(large, model="m" * 1000, choices=(reason,) * 7))
        assert len(owed_bytes := books._reserve.path.read_bytes()) == books._reserve.size
        assert books._reserve._end <= len(owed_bytes)
        assert len(books._owed) == len(under_way) > 6
        clear(store)


def test_the_largest_entry_is_no_larger_than_is_thought() -> None:
    one = record(2**60, ONE, tenant="t" * 63)
    reasons = [Generated(tokens=1, finish_reason="expert_withdrawn", shares=(ONE,))] * 9
    large = replace(one, id="motet-" + "f" * 32, created=2**62, model="m" * 1024, choices=tuple(reasons))
    assert len(entry_of(large, IDS).to_bytes()) <= most_bytes(IDS, choices=9)
    assert HEAD_BYTES + most_bytes(IDS, choices=9) < 3000


def test_more_than_there_is_room_for_is_told(store: UsageStore, caplog: pytest.LogCaptureFixture) -> None:
    with Books(store, IDS, max_batch=1, queue=1, again_seconds=60) as books:
        fill(store)
        for number in range(40):
            with pytest.raises(StorageError, match="full"):
                books.keep(record(number, ONE))
        assert re.search(rf"motet-39 lies in memory alone, .*saw a record of .*{OWED}", caplog.text)
        assert "motet-9 lies" not in caplog.text
        clear(store)
    assert store.holds("motet-39")


def test_servers_of_one_folder_owe_apart(store: UsageStore) -> None:
    with Books(store, IDS) as first:
        second = Books(store, IDS, again_seconds=60)
        fill(store)
        with pytest.raises(StorageError):
            second.keep(record(2, ONE))
        killed(second)
        clear(store)
        assert is_open(first)
        assert not store.holds("motet-2")
        with Books(store, IDS):
            assert store.holds("motet-2")


def test_without_room_for_what_may_be_owed_nothing_starts(tmp_path: Path) -> None:
    with UsageStore(tmp_path / "usage.sqlite") as store, no_file_beyond(100_000):
        with pytest.raises(StorageError, match=r"cannot write .*usage\.owed-1.*free space"):
            Books(store, IDS)
        Books(store, IDS, max_batch=1, queue=1).close()


ON_A_SMALL_DISK = """
import json, os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from motet.protocols.errors import StorageError
from motet.serving.usage.books import Books
from motet.serving.usage.store import Period, UsageStore
from tests.serving.test_usage import IDS, record
ONE, path, filler, said = (0.5, 0.25, 0.25), Path("usage.sqlite"), Path("filler"), {{}}

def fill():
    with filler.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass

def tried(work):
    try:
        work()
    except StorageError as error:
        return str(error)

def killed(work):
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(child, 0)[1])

def serve():
    store = UsageStore(path)
    books = Books(store, IDS, again_seconds=60)
    told = {{"kept": [], "owed": []}}
    for number in range(200):
        if number == 3:
            fill()
        told["owed" if tried(lambda: books.keep(record(number, ONE))) else "kept"].append(number)
        if len(told["owed"]) == 20:
            break
    told["closed"] = tried(books.require_open)
    told["readable"] = store.total(Period()).answers
    os.write(1, json.dumps(told).encode() + b"\\n")

def start():
    with UsageStore(path) as store, Books(store, IDS):
        pass

fill()
said["nothing starts"] = tried(start)
filler.unlink()
said["signal"] = killed(serve)
fill()
said["still full"] = tried(start)
filler.unlink()
with UsageStore(path) as store:
    said["in the store"] = [number for number in range(200) if store.holds(f"motet-{{number}}")]
    with Books(store, IDS) as books:
        said["on the books"] = [number for number in range(200) if store.holds(f"motet-{{number}}")]
        total = store.total(Period())
        said["exact"] = sum(each.microtokens for each in total.experts) == 1_000_000 * total.answers
        books.keep(record(999, ONE))
print(json.dumps(said))
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """The beginning of a command that runs where a disk of 2 MB is mounted, with that as its folder."""
    (tmp_path / "disk").mkdir()
    mounting = f'mount -t tmpfs -o size=2m none {tmp_path}/disk && cd {tmp_path}/disk && exec "$@"'
    line = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounting, "sh"]
    try:
        subprocess.run([*line, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    return line


def test_a_real_full_disk_and_a_real_kill_lose_nothing(small_disk: list[str]) -> None:
    line = [*small_disk, sys.executable, "-c", ON_A_SMALL_DISK.format(root=ROOT)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, said = map(json.loads, done.stdout.splitlines())
    assert "wanted 262,144 for usage.sqlite; free space" in said["nothing starts"]
    assert said["signal"] == 9
    assert told["kept"][:3] == [0, 1, 2]
    assert len(told["owed"]) == 20
    assert "no answer begins until" in told["closed"]
    assert told["readable"] == len(told["kept"])
    assert said["still full"] == said["nothing starts"]
    assert said["in the store"] == told["kept"]
    assert said["on the books"] == sorted(told["kept"] + told["owed"])
    assert said["exact"]
