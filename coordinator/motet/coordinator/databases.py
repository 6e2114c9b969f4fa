"""SQLite as the ledger and a server's books use it: what is committed is on the disk, and a full disk is an error.

with closing(connect(home / "ledger.sqlite", busy_seconds=60)) as database:
    database.executescript(SCHEMA)
"""

import sqlite3
from pathlib import Path

from motet.protocols.canonical import require_room, storage_errors

ROOM_BYTES = 1 << 18
"""Free on the disk before a database is opened. SQLite maps the index of its log, 32 KiB, into memory: where blocks are
smaller than pages and the disk is full, the first touch of one of its pages ends the process (SIGBUS)."""


def connect(path: Path, *, busy_seconds: float) -> sqlite3.Connection:
    """Opens a database for any thread, in WAL mode, made if there is none; transactions are begun by hand.

    Raises:
        StorageError: the disk is full, or the folder cannot be used.
        sqlite3.Error: it is damaged, or held by another process for longer than `busy_seconds`.
    """
    with storage_errors(path, new=True):
        require_room(path.parent, ROOM_BYTES, path.name)
    database = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
    except BaseException:
        database.close()
        raise
    return database
