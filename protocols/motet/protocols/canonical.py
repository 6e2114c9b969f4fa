"""Canonical JSON, digests, and files that are either whole or absent.

The same value gives the same bytes on every machine, so that its SHA-256 can name it:

    digest_of({"name": "medicine", "rank": None})       # "sha256:…"
    file_digest(Path("update.safetensors"))
    write_atomically(Path("receipt.json"), canonical_json(receipt.model_dump(mode="json")))
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self

from pydantic import StringConstraints

from motet.protocols.errors import StorageError

CHUNK_BYTES = 1 << 20

_UNWRITABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG}
)
_NO_FOLDER = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EEXIST})

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """The one byte string of a JSON value: keys sorted, no spaces, UTF-8, no NaN or infinity.

    Raises:
        ValueError: a float in it is not finite.
        TypeError: it holds something JSON cannot.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def bytes_digest(data: bytes) -> str:
    """The digest of a byte string, written "sha256:" and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_of(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """The digest of a JSON value's canonical form."""
    return bytes_digest(canonical_json(value))


def file_digest(path: Path) -> str:
    """The digest of a file's content, read in chunks of 1 MiB."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
    return "sha256:" + state.hexdigest()


def hex_of(digest: str) -> str:
    """The hexadecimal digits of a digest or a key, without the "sha256:" or "ed25519:" before them: a file name."""
    return digest.partition(":")[2]


def sync_directory(directory: Path) -> None:
    """Make renames inside `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError, also for a pipe or a device, which could be waited for without end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def storage_errors(path: Path, *, new: bool = False) -> Iterator[None]:
    """Turn a full, failing or unwritable disk into a `StorageError` that names the path and the next step.

    Args:
        path: what is written.
        new: nothing but a new file is made inside, so that a folder which is not there, or is none, is such an error
            too; anywhere else it may be a file that another process took away.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (_UNWRITABLE | _NO_FOLDER if new else _UNWRITABLE):
            raise
        raise StorageError(
            f"cannot write {path}: {error.strerror}; free space there or choose another folder, then run the same "
            "command again: what was complete is kept"
        ) from error


def require_room(folder: Path, size: int, what: str) -> None:
    """Raises StorageError unless `size` bytes are free in a folder; `what` needs them, such as "the copy"."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise StorageError(
            f"saw {free:,} bytes free at {folder}, wanted {size:,} for {what}; free space or choose another "
            "folder, then run the same command again"
        )


def new_beside(path: Path) -> BinaryIO:
    """A new hidden file beside `path`, locked while it is open, to be renamed to it before it is closed.

    Those that killed processes left for the same path are removed: nobody holds them.

    Raises:
        StorageError: no file can be made there.
    """
    with storage_errors(path, new=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            _remove_unheld(left)
        while True:
            file = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp").open("xb")
            with suppress(OSError):  # where there are no locks, nothing is removed either
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else it was removed before it was locked
                return file
            file.close()


class WrittenAside:
    """A file that is written beside its place. A context manager.

    It takes its name, durably, when the block ends without an error; else nothing is left behind.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = new_beside(path)
        self._temporary = Path(self._file.name)

    def close(self) -> None:
        """Finish the file and give it its name."""
        try:
            with storage_errors(self.path):
                self._finish()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._temporary.replace(self.path)
                self._file.close()
                sync_directory(self.path.parent)
        except BaseException:
            self._discard()
            raise

    def _finish(self) -> None:
        """What comes last: more bytes, or an error when something is missing."""

    def _discard(self) -> None:
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()


def _remove_unheld(path: Path) -> None:
    with suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new and nothing between.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with storage_errors(path, new=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
        sync_directory(path.parent)
