"""Locks between processes, on a file of their own; the kernel lets go of them however their holder ends.

with locked(path):                  # alone, among threads as well
    ...
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from motet.protocols.canonical import storage_errors


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold the lock at `path`; the file is made if it is missing and stays there, empty.

    Not re-entrant: a thread that holds it and asks for it again waits for itself.

    Args:
        path: the lock's file, in a folder that exists.
        shared: several may hold it as long as nobody holds it alone.
        wait: whether to wait for those who hold it.

    Raises:
        BlockingIOError: somebody holds it, and `wait` is false.
        StorageError: the file cannot be made.
    """
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
