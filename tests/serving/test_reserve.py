"""Room that is taken beforehand: what was added is found again, however whoever added it ended, and nothing else."""

import os
import resource
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.protocols.errors import StorageError
from motet.serving.usage.reserve import HEAD_BYTES, Reserve, taken

SIZE = 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.owed-1"


def filled(path: Path, *records: bytes) -> None:
    with closing(Reserve(path, SIZE)) as reserve:
        reserve.clear()
        for record in records:
            reserve.add(record)


def left(path: Path) -> tuple[bytes, ...]:
    with closing(Reserve(path, SIZE)) as reserve:
        return reserve.left


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """As on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_was_added_is_found_again_until_it_is_cleared(path: Path) -> None:
    filled(path, b"one", b"two" * 50)
    assert left(path) == (b"one", b"two" * 50)
    with closing(Reserve(path, SIZE)) as reserve:
        reserve.add(b"three")
    assert left(path) == (b"one", b"two" * 50, b"three")
    with closing(Reserve(path, SIZE)) as reserve:
        reserve.clear()
        reserve.add(b"four")
    assert left(path) == (b"four",)


def test_adding_takes_no_more_of_the_disk_until_a_full_file_refuses(path: Path) -> None:
    with closing(Reserve(path, SIZE)) as reserve:
        reserve.clear()
        before = path.stat()
        for _ in range(9):
            reserve.add(b"x" * (SIZE // 10))
        with pytest.raises(StorageError, match=rf"saw a record of 108 bytes, wanted 28 at most.*{path.name}"):
            reserve.add(b"y" * (SIZE // 10))
        reserve.add(b"z" * (28 - HEAD_BYTES))
    after = path.stat()
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks) == (SIZE, before.st_blocks)
    assert before.st_blocks * 512 >= SIZE
    assert left(path) == (b"x" * (SIZE // 10),) * 9 + (b"z" * (28 - HEAD_BYTES),)


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=5), st.data())
def test_of_a_record_that_is_half_written_nothing_is_there(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes], data: st.DataObject
) -> None:
    """Some of the last one's blocks are on the disk, the others still zero, or what they were."""
    path = tmp_path_factory.mktemp("torn") / "usage.owed-1"
    framed = [struct.pack("<II", len(each), zlib.crc32(each)) + each for each in records]
    whole = bytearray(b"".join(framed).ljust(SIZE, b"\0"))
    path.write_bytes(whole)
    assert left(path) == tuple(records)
    end = sum(map(len, framed))
    whole[data.draw(st.integers(end - len(framed[-1]), end - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    assert left(path) == tuple(records[:-1])


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_a_file_holds_can_be_opened(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "usage.owed-1"
    path.write_bytes(content)
    assert sum(map(len, left(path))) <= len(content)
    with closing(Reserve(path, SIZE)) as reserve:
        reserve.clear()
        reserve.add(b"one")
    assert left(path) == (b"one",)


def test_nothing_of_earlier_records_comes_back(path: Path) -> None:
    """Of a clearing that was broken off after its first block, say."""
    filled(path, b"one", b"two", b"three")
    whole = path.read_bytes()
    path.write_bytes(bytes(HEAD_BYTES + 3) + whole[HEAD_BYTES + 3 :])
    with closing(taken(path.with_name("usage.owed"), SIZE, lambda *_: None)) as reserve:
        reserve.add(b"new")  # as long as the first was
    assert left(path) == (b"new",)


def test_a_file_that_is_too_small_grows_and_one_that_is_larger_stays(path: Path) -> None:
    for size, found in ((SIZE, SIZE), (5 * SIZE, 5 * SIZE), (10, 5 * SIZE)):
        with closing(Reserve(path, size)) as reserve:
            reserve.clear()
            assert reserve.size == path.stat().st_size == found


def test_where_there_is_no_room_nothing_is_taken(path: Path) -> None:
    filled(path)
    with closing(Reserve(path, 4 * SIZE)) as reserve, no_file_beyond(2 * SIZE):
        with pytest.raises(StorageError, match=r"usage\.owed-1.*free space"):
            reserve.clear()
        assert path.stat().st_size == SIZE
    with pytest.raises(StorageError, match="cannot write"):
        Reserve(path.parent / "none" / path.name, SIZE)


def test_a_record_that_could_not_be_written_is_not_there(path: Path) -> None:
    with closing(Reserve(path, SIZE)) as reserve:
        reserve.clear()
        reserve.add(b"one")
        with no_file_beyond(50), pytest.raises(StorageError, match="free space"):
            reserve.add(b"x" * 100)
        reserve.add(b"two")
    assert left(path) == (b"one", b"two")


def test_nothing_is_added_to_a_file_that_was_closed(path: Path) -> None:
    reserve = Reserve(path, SIZE)
    reserve.clear()
    reserve.close()
    with pytest.raises(StorageError):
        reserve.add(b"one")


def test_each_process_has_its_own_and_what_is_left_in_the_others_is_settled(tmp_path: Path) -> None:
    told: dict[str, tuple[bytes, ...]] = {}

    def settle(path: Path, found: Sequence[bytes]) -> None:
        told[path.name] = tuple(found)

    name = tmp_path / "usage.owed"
    first, second, third = (taken(name, SIZE, settle) for _ in range(3))
    assert [each.path.name for each in (first, second, third)] == ["usage.owed-1", "usage.owed-2", "usage.owed-3"]
    second.add(b"two")
    third.add(b"three")
    for each in (second, third):
        os.close(each._file)  # as when a process is killed
    told.clear()
    with closing(taken(name, SIZE, settle)) as again:
        assert again.path.name == "usage.owed-2"
    assert told == {"usage.owed-2": (b"two",), "usage.owed-3": (b"three",)}
    assert left(tmp_path / "usage.owed-3") == ()
    first.close()


def test_what_cannot_be_settled_stays(tmp_path: Path) -> None:
    def full(path: Path, found: Sequence[bytes]) -> None:
        raise StorageError("no space left on device")

    filled(tmp_path / "usage.owed-1", b"one")
    with pytest.raises(StorageError, match="no space"):
        taken(tmp_path / "usage.owed", SIZE, full)
    assert left(tmp_path / "usage.owed-1") == (b"one",)
