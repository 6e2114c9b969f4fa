"""The partial file's journal against every way a crash can leave it; nonces; the watchdog."""

import os
import random
import threading
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.protocols.errors import TransferRefused
from motet.protocols.transfer.nonces import Nonces
from motet.protocols.transfer.partial import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, SYNC_BYTES, Partial, forget_stale
from motet.protocols.transfer.stall import Watchdog


def _append(partial, data):
    partial.append(offset=partial.offset, data=data, checksum=zlib.crc32(data))


def _filled(directory, chunks, size=1000):
    data = random.Random(0).randbytes(chunks * size)
    partial = Partial(directory, "update")
    for start in range(0, len(data), size):
        _append(partial, data[start : start + size])
    return partial, data


def test_a_partial_file_is_found_again(tmp_path):
    partial, data = _filled(tmp_path, 5)
    found = Partial(tmp_path, "update")
    assert (found.offset, found.received) == (len(data), len(data))
    assert partial.path.read_bytes() == data


@given(
    chunks=st.integers(1, 6),
    part_tail=st.integers(0, 6500),
    journal_tail=st.integers(0, 200),
    flipped=st.one_of(st.none(), st.integers(0, 5999)),
)
@settings(max_examples=150, deadline=None)
def test_after_any_crash_what_is_kept_is_a_prefix_and_can_be_completed(
    tmp_path_factory, chunks, part_tail, journal_tail, flipped
):
    directory = tmp_path_factory.mktemp("intake")
    partial, data = _filled(directory, chunks)
    journal = directory / "update.journal"
    part = bytearray(data[: max(0, len(data) - part_tail)])
    if flipped is not None and flipped < len(part):
        part[flipped] ^= 255
    partial.path.write_bytes(part)
    whole = journal.read_bytes()
    journal.write_bytes(whole[: max(0, len(whole) - journal_tail)])
    found = Partial(directory, "update")
    assert found.offset % 1000 == 0
    assert partial.path.read_bytes() == data[: found.offset]
    for start in range(found.offset, len(data), 1000):
        _append(found, data[start : start + 1000])
    assert partial.path.read_bytes() == data
    assert Partial(directory, "update").offset == len(data)


def test_a_torn_tail_costs_only_the_chunks_it_touches(tmp_path):
    partial, data = _filled(tmp_path, 5)
    partial.path.write_bytes(data[:3500])
    found = Partial(tmp_path, "update")
    assert (found.offset, found.received) == (3000, 5000)


def test_a_missing_part_keeps_the_count_of_what_was_received(tmp_path):
    partial, _ = _filled(tmp_path, 5)
    partial.path.unlink()
    found = Partial(tmp_path, "update")
    assert (found.offset, found.received) == (0, 5000)
    assert Partial(tmp_path, "update").received == 5000


def test_starting_over_keeps_the_count_and_survives_a_restart(tmp_path):
    partial, _ = _filled(tmp_path, 3)
    partial.start_over()
    found = Partial(tmp_path, "update")
    assert (found.offset, found.received) == (0, 3000)
    _append(found, b"x" * 10)
    assert Partial(tmp_path, "update").received == 3010


def test_only_the_doubtful_tail_is_read_again(tmp_path, monkeypatch):
    _filled(tmp_path, 40, MAX_CHUNK_BYTES)
    checked = []
    real = zlib.crc32
    monkeypatch.setattr(
        "motet.protocols.transfer.partial.zlib.crc32", lambda data: (checked.append(len(data)), real(data))[1]
    )
    Partial(tmp_path, "update")
    read = sum(size for size in checked if size >= MIN_CHUNK_BYTES)
    assert SYNC_BYTES <= read <= SYNC_BYTES + 2 * MAX_CHUNK_BYTES


def test_removing_leaves_nothing(tmp_path):
    partial, _ = _filled(tmp_path, 2)
    partial.label(b"whose it is")
    partial.remove()
    assert list(tmp_path.iterdir()) == []


def test_only_what_nobody_touched_for_long_is_forgotten(tmp_path):
    _filled(tmp_path, 2)
    fresh = {path.name for path in tmp_path.iterdir()}
    for name in ("old.part", "old.journal", "old.signed", "old.txt"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (0, 0))
    forget_stale(tmp_path, days=30)
    assert {path.name for path in tmp_path.iterdir()} == fresh | {"old.txt"}


def test_nonces_expire_and_spent_ones_are_bounded():
    nonces = Nonces(seconds=0.0)
    with pytest.raises(TransferRefused) as expired:
        nonces.spend(nonces.issue())
    nonces = Nonces(limit=2)
    for _ in range(2):
        nonces.spend(nonces.issue())
    with pytest.raises(TransferRefused) as full:
        nonces.spend(nonces.issue())
    with pytest.raises(TransferRefused) as foreign:
        nonces.spend(Nonces().issue())
    assert [error.value.reason for error in (expired, full, foreign)] == ["stale-nonce", "busy", "stale-nonce"]


def test_the_watchdog_barks_when_nothing_moves_and_only_then():
    barked = threading.Event()
    with Watchdog(barked.set, seconds=0.2) as watchdog:
        for _ in range(8):
            threading.Event().wait(0.05)
            watchdog.touch()
        assert not barked.is_set()
        assert barked.wait(5)
