"""An upload on its way, on disk: it survives a crash of the server up to the last whole chunk.

Beside `<contribution>.part` lies `<contribution>.journal`, one record per chunk: where the chunk ends, its length and
CRC-32, and the payload bytes received so far. Both files are made durable every `SYNC_BYTES`, so after a crash only
that much needs to be read again; whatever the journal does not vouch for is cut off. `<contribution>.signed` is the
manifest as its owner signed it, so that whoever looks at the folder sees whose update is on its way.

    partial = Partial(intake, contribution_hex)     # recovers what is there
    partial.append(offset=partial.offset, data=data, checksum=zlib.crc32(data))
    partial.sync()
"""

import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from motet.protocols.canonical import storage_errors, sync_directory, write_atomically
from motet.protocols.errors import TransferRefused

MAX_CHUNK_BYTES = 1 << 20
MIN_CHUNK_BYTES = 1 << 16
SYNC_BYTES = 16 << 20
LABEL = ".signed"
"""The suffix of the signed manifest."""

_SUFFIXES = (".part", ".journal", LABEL)
_RECORD = struct.Struct(">QIIQ")
_SEAL = struct.Struct(">I")
_RECORD_BYTES = _RECORD.size + _SEAL.size
_DOUBTFUL = (SYNC_BYTES + MAX_CHUNK_BYTES) // MIN_CHUNK_BYTES + 2
"""More records than can lie between two syncs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    end: int
    length: int
    checksum: int
    received: int

    def encode(self) -> bytes:
        body = _RECORD.pack(self.end, self.length, self.checksum, self.received)
        return body + _SEAL.pack(zlib.crc32(body))

    @classmethod
    def decode(cls, raw: bytes) -> Self | None:
        """None unless the record is whole."""
        if len(raw) != _RECORD_BYTES or _SEAL.unpack(raw[_RECORD.size :])[0] != zlib.crc32(raw[: _RECORD.size]):
            return None
        end, length, checksum, received = _RECORD.unpack(raw[: _RECORD.size])
        return cls(end=end, length=length, checksum=checksum, received=received)


class Partial:
    """One growing file. Not thread-safe: the caller holds a lock. No file stays open between calls.

    Attributes:
        offset: bytes that are there and verified.
        received: payload bytes that arrived, repeats included; survives a restart.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / f"{name}.part"
        self._journal = directory / f"{name}.journal"
        self.offset = 0
        self.received = 0
        self._entries = 0
        self._unsynced = 0
        with storage_errors(self.path):
            directory.mkdir(parents=True, exist_ok=True)
            self._recover()

    def append(self, *, offset: int, data: bytes, checksum: int) -> None:
        """Write one chunk behind the last.

        Raises:
            TransferRefused: reason "bad-checksum" or "wrong-offset"; nothing was written.
            StorageError: the disk is full; what was whole before is kept.
        """
        self.received += len(data)
        if zlib.crc32(data) != checksum:
            raise TransferRefused(f"the chunk at {offset} was damaged on the way; send it again", reason="bad-checksum")
        if offset != self.offset:
            raise TransferRefused(
                f"saw a chunk at {offset}, wanted one at {self.offset}; begin again", reason="wrong-offset"
            )
        record = _Record(end=offset + len(data), length=len(data), checksum=checksum, received=self.received)
        with storage_errors(self.path):
            _write_at(self.path, data, offset)
            _write_at(self._journal, record.encode(), self._entries * _RECORD_BYTES)
        self.offset = record.end
        self._entries += 1
        self._unsynced += len(data)
        if self._unsynced >= SYNC_BYTES:
            self.sync()

    def label(self, signed: bytes) -> None:
        """Keep the signed manifest beside the file, for whoever looks on."""
        write_atomically(self.path.with_suffix(LABEL), signed, mode=0o600)

    def sync(self) -> None:
        """Make what arrived survive a power cut."""
        if not self._unsynced:
            return
        with storage_errors(self.path):
            _sync_file(self.path)
            _sync_file(self._journal)
            sync_directory(self.path.parent)
        self._unsynced = 0

    def start_over(self) -> None:
        """Forget the bytes, keep the count of what was received."""
        reset = _Record(end=0, length=0, checksum=0, received=self.received)
        with storage_errors(self.path):
            self.path.unlink(missing_ok=True)
            write_atomically(self._journal, reset.encode(), mode=0o600)
        self.offset, self._entries, self._unsynced = 0, 1, 0

    def remove(self) -> None:
        """Delete the file, if it was not moved away, and its journal."""
        forget(self.path.parent, self.path.stem)

    def _recover(self) -> None:
        doubtful: deque[_Record] = deque(maxlen=_DOUBTFUL)
        for record in _records(self._journal):
            doubtful.append(record)
            self.offset, self.received = record.end, record.received
            self._entries += 1
        tail = [record for record in doubtful if record.end > self.offset - SYNC_BYTES - MAX_CHUNK_BYTES]
        sound = self._sound(tail)
        if sound < len(tail):
            self._entries -= len(tail) - sound
            self.offset = tail[sound].end - tail[sound].length
        self._unsynced = SYNC_BYTES if self.offset else 0  # the dead process may not have come to it
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self.offset:
            self.start_over()
        for path, size in ((self.path, self.offset), (self._journal, self._entries * _RECORD_BYTES)):
            if path.exists():
                os.truncate(path, size)

    def _sound(self, records: list[_Record]) -> int:
        """How many of these records, from the first, the file bears out."""
        if not self.path.exists():
            return len(records)
        with self.path.open("rb") as file:
            for index, record in enumerate(records):
                file.seek(record.end - record.length)
                data = file.read(record.length)
                if len(data) != record.length or zlib.crc32(data) != record.checksum:
                    return index
        return len(records)


def forget(directory: Path, name: str) -> None:
    """Delete what is there of an upload, if anything."""
    for suffix in _SUFFIXES:
        (directory / f"{name}{suffix}").unlink(missing_ok=True)


def forget_stale(directory: Path, *, days: float) -> None:
    """Delete partial files that nobody has touched for so long: abandoned, or withdrawn before they were whole."""
    for path in directory.iterdir():
        if path.suffix in _SUFFIXES and time.time() - path.stat().st_mtime > days * 86400:
            path.unlink()


def _records(path: Path) -> Iterator[_Record]:
    """The journal's records up to the first that is torn or does not follow."""
    position = 0
    with suppress(FileNotFoundError), path.open("rb") as file:
        while (record := _Record.decode(file.read(_RECORD_BYTES))) is not None:
            reset = record.end == record.length == 0
            if not reset and record.end - record.length != position:
                return
            yield record
            position = record.end


def _write_at(path: Path, data: bytes, offset: int) -> None:
    """Write all of `data` or leave the file as long as it was."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        written = 0
        while written < len(view):
            written += os.pwrite(descriptor, view[written:], offset + written)
    except OSError:
        os.ftruncate(descriptor, offset)
        raise
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
