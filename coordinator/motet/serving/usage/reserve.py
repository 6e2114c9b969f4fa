"""Room on the disk that is taken beforehand, for what must be written when no more is free.

Guarantees: `add` takes no new blocks, since it writes over zeros that were written before, and returns when its record
is on the disk. What was added is found again by whoever opens the file next, however the process that added it ended;
a record that was being written at that moment is either whole or not there. One process at a time has the file.

    reserve = taken(Path("usage.owed"), 1 << 20, settle)    # usage.owed-1, or -2 if another process has that one;
                                                            # settle is given what killed processes left in any
    reserve.add(b"...")                                     # StorageError when no room is left in it
    reserve.clear()                                         # when all of it is written elsewhere

The zeros are written, not only asked for (posix_fallocate): to write into a block that was never written may take a
new one for the file's map. A file system that copies on write (btrfs, ZFS) takes new blocks all the same.
"""

import fcntl
import glob
import itertools
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from motet.protocols.canonical import storage_errors, sync_directory
from motet.protocols.errors import StorageError

_HEAD = struct.Struct("<II")  # of a record: its length, and its CRC-32; a length of zero ends the records
HEAD_BYTES = _HEAD.size
"""What a record takes beside its own bytes."""
Settle = Callable[[Path, Sequence[bytes]], None]
"""Writes the records of a file elsewhere."""


class Reserve:
    """An open file of records. Not for several threads at once; `close` it.

    Attributes:
        path: the file.
        size: its bytes, all of which are taken as soon as it was cleared.
        left: the records that were in it when it was opened, from the first to the first that is not whole.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Opens the file, made if it is missing; `clear` makes it as large as `size`.

        Raises:
            BlockingIOError: another process has it.
            StorageError: it cannot be opened.
        """
        self.path = path
        with storage_errors(path, new=True):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.size = max(size, os.fstat(self._file).st_size)
            self.left = tuple(_records(self._file))
        except BaseException:
            os.close(self._file)
            raise
        self._end = sum(HEAD_BYTES + len(record) for record in self.left)

    def add(self, record: bytes) -> None:
        """Writes a record behind the others. Raises StorageError; then it is not there."""
        framed = _HEAD.pack(len(record), zlib.crc32(record)) + record
        if self._end + len(framed) > self.size:
            raise StorageError(
                f"saw a record of {len(framed):,} bytes, wanted {self.size - self._end:,} at most, what is left of the "
                f"{self.size:,} of {self.path}; free space on the disk, so that what is in it can be written elsewhere"
            )
        self._write(self._end, framed)
        self._end += len(framed)

    def clear(self) -> None:
        """Forgets all records, and takes every block of the file by writing zeros to it.

        Raises StorageError; then the file is no larger than it was.
        """
        before = os.fstat(self._file).st_size
        try:
            self._write(0, bytes(self.size))
        except StorageError:
            os.ftruncate(self._file, before)
            raise
        self._end = 0
        with storage_errors(self.path):
            sync_directory(self.path.parent)

    def close(self) -> None:
        """Lets go of the file, which stays; nothing can be added any more."""
        os.close(self._file)
        self._file, self.size = -1, 0

    def _write(self, offset: int, data: bytes) -> None:
        with storage_errors(self.path):
            while data:
                written = os.pwrite(self._file, data, offset)
                data, offset = data[written:], offset + written
            os.fsync(self._file)


def taken(path: Path, size: int, settle: Settle) -> Reserve:
    """The first of the files `path`-1, `path`-2, ... that no other process has, empty and with `size` bytes at least.

    Raises StorageError, and as `settle_left`, which comes first.
    """
    settle_left(path, settle)
    opened = (_opened(path.with_name(f"{path.name}-{number}"), size) for number in itertools.count(1))
    reserve = next(each for each in opened if each is not None)
    try:
        _empty(reserve, settle)  # of a process that was killed just now
        reserve.clear()
    except BaseException:
        reserve.close()
        raise
    return reserve


def settle_left(path: Path, settle: Settle) -> None:
    """Empties each of these files that nobody has any more.

    `settle` is told its path and the records that a process which was killed has left in it, and must write them
    elsewhere. Raises StorageError, and what `settle` raises; then the records of that file stay in it.
    """
    for each in sorted(path.parent.glob(f"{glob.escape(path.name)}-[0-9]*")):
        if (reserve := _opened(each, 0)) is not None:
            with closing(reserve):
                _empty(reserve, settle)


def _empty(reserve: Reserve, settle: Settle) -> None:
    if reserve.left:
        settle(reserve.path, reserve.left)
        reserve.clear()


def _opened(path: Path, size: int) -> Reserve | None:
    """None if another process has it."""
    try:
        return Reserve(path, size)
    except BlockingIOError:
        return None


def _records(file: int) -> Iterator[bytes]:
    """Those that are whole, up to the first that is not."""
    offset, size = 0, os.fstat(file).st_size
    while offset + HEAD_BYTES <= size:
        length, check = _HEAD.unpack(os.pread(file, HEAD_BYTES, offset))
        offset += HEAD_BYTES
        if not length or offset + length > size:
            return
        record = os.pread(file, length, offset)
        if zlib.crc32(record) != check:
            return
        yield record
        offset += length
