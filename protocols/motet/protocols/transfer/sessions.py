"""Who may push or fetch what at the moment: sessions, in memory, one token each, gone after idling.

A restart forgets them all; clients begin again. An upload belongs to the session that began last, so that a client
which lost its connection need not wait for the server to notice.
"""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from motet.protocols.errors import TransferRefused
from motet.protocols.transfer.publication import Listing
from motet.protocols.transfer.uploads import Upload

IDLE_SECONDS = 900.0
MAX_SESSIONS_PER_OWNER = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One publication being fetched."""

    digest: str
    directory: Path
    manifest: str
    listing: Listing
    guest: bool = False
    """Whether the one who fetches it is no owner."""


@dataclass(kw_only=True, slots=True)
class Session:
    """A token's meaning."""

    token: str
    owner: str
    subject: Upload | Reading
    used: float


class Sessions:
    """The open sessions of one server; safe to use from several threads."""

    def __init__(self, *, idle_seconds: float = IDLE_SECONDS, limit: int = MAX_SESSIONS_PER_OWNER) -> None:
        self._idle_seconds = idle_seconds
        self._limit = limit
        self._open: dict[str, Session] = {}
        self._uploads: WeakValueDictionary[str, Upload] = WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, owner: str, subject: Upload | Reading) -> str:
        """A new token; the owner's least recently used session makes room if there are too many."""
        now = time.monotonic()
        token = secrets.token_hex(16)
        with self._lock:
            for session in [s for s in self._open.values() if now - s.used > self._idle_seconds]:
                del self._open[session.token]
            own = sorted((s for s in self._open.values() if s.owner == owner), key=lambda session: session.used)
            for session in own[: max(0, len(own) + 1 - self._limit)]:
                del self._open[session.token]
            self._open[token] = Session(token=token, owner=owner, subject=subject, used=now)
        return token

    def upload(self, token: str) -> Upload:
        """The upload of a session.

        Raises:
            TransferRefused: reason "unknown-session".
        """
        subject = self._subject(token)
        if not isinstance(subject, Upload):
            raise _unknown()
        return subject

    def reading(self, token: str) -> Reading:
        """The publication of a session.

        Raises:
            TransferRefused: reason "unknown-session".
        """
        subject = self._subject(token)
        if not isinstance(subject, Reading):
            raise _unknown()
        return subject

    def close(self, token: str) -> None:
        """Forget a session."""
        with self._lock:
            self._open.pop(token, None)

    def share_upload(self, digest: str, start: Callable[[], Upload]) -> Upload:
        """The one upload of a contribution: the one under way, or what `start` makes."""
        with self._lock:
            upload = self._uploads.get(digest)
            if upload is None:
                upload = self._uploads[digest] = start()
            return upload

    def _subject(self, token: str) -> Upload | Reading:
        with self._lock:
            session = self._open.get(token)
            if session is None:
                raise _unknown()
            session.used = time.monotonic()
            return session.subject


def _unknown() -> TransferRefused:
    return TransferRefused("saw a session that is not open here, or no longer; begin again", reason="unknown-session")
