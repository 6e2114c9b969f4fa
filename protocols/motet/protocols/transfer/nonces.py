"""One-time values that prove a signed request was made for this server process, just now.

A nonce authenticates itself (time, random bytes and an HMAC under a key that dies with the process), so handing
one out costs no memory and a flood of requests pushes nobody out. Only spent nonces are remembered, until they
expire. Guests' are remembered apart: a flood of them pushes no owner out either.
"""

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict

from motet.protocols.errors import TransferRefused

NONCE_SECONDS = 120.0
MAX_SPENT = 65536
MAX_SPENT_BY_GUESTS = 1024
_TIME_BYTES, _RANDOM_BYTES, _TAG_BYTES = 8, 16, 16


class Nonces:
    """The nonces of one server process; safe to use from several threads."""

    def __init__(self, *, seconds: float = NONCE_SECONDS, limit: int = MAX_SPENT) -> None:
        self._key = secrets.token_bytes(32)
        self._seconds = seconds
        self._limit = limit
        self._spent: OrderedDict[str, float] = OrderedDict()
        self._spent_by_guests: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def issue(self) -> str:
        """A new nonce, 80 hexadecimal digits."""
        body = time.monotonic_ns().to_bytes(_TIME_BYTES) + secrets.token_bytes(_RANDOM_BYTES)
        return (body + self._tag(body)).hex()

    def spend(self, nonce: str, *, guest: bool = False) -> None:
        """Use a nonce up; `guest` says that no owner does.

        Raises:
            TransferRefused: reason "stale-nonce" when it has expired or another process gave it, "replayed"
                when it was used before, "busy" when too many were used of late.
        """
        issued = self._issued(nonce)
        now = time.monotonic()
        if issued is None or not 0 <= now - issued <= self._seconds:
            raise TransferRefused(
                "saw a nonce that has expired or is not of this server process; ask for a new one", reason="stale-nonce"
            )
        spent = self._spent_by_guests if guest else self._spent
        limit = min(self._limit, MAX_SPENT_BY_GUESTS) if guest else self._limit
        with self._lock:
            while spent and next(iter(spent.values())) < now:
                spent.popitem(last=False)
            if nonce in spent:
                raise TransferRefused("this request was made before; sign a new one", reason="replayed")
            if len(spent) >= limit:
                raise TransferRefused("too many requests of late; try again in two minutes", reason="busy")
            spent[nonce] = now + self._seconds

    def _issued(self, nonce: str) -> float | None:
        """When this process issued the nonce, in monotonic seconds; None if it did not."""
        raw = bytes.fromhex(nonce)
        body, tag = raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(body)):
            return None
        return int.from_bytes(body[:_TIME_BYTES]) / 1e9

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)[:_TAG_BYTES]
