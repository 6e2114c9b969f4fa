"""One contribution on its way to the coordinator, shared by the threads that push and commit it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from motet.protocols.canonical import file_digest
from motet.protocols.contribution import Contribution
from motet.protocols.errors import AdmissionRefused, TransferRefused
from motet.protocols.signing import Signed
from motet.protocols.transfer.partial import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, Partial
from motet.protocols.transfer.policy import TransferPolicy

_WAIT_SECONDS = 1.0


@dataclass(kw_only=True, slots=True, weakref_slot=True, eq=False)
class Upload:
    """An upload; `changed` guards the fields below it and the partial file.

    Attributes:
        holder: the token of the session that may push: the one that began last.
        admitting: a commit is deciding on it right now.
        receipt: the decision, once there is one.
    """

    manifest: Contribution
    signed: Signed
    partial: Partial
    changed: threading.Condition = field(default_factory=threading.Condition)
    holder: str = ""
    admitting: bool = False
    receipt: Signed | None = None

    def hand_to(self, token: str) -> int:
        """Let this session push, and no other; returns the offset to push from."""
        with self.changed:
            self.holder = token
            return self.partial.offset

    def append(self, token: str, *, offset: int, data: bytes, checksum: int) -> None:
        """Write one chunk.

        Raises:
            TransferRefused: reason "superseded", "bad-chunk", "too-large", "bad-checksum" or "wrong-offset".
            StorageError: the disk is full; what arrived before is kept.
        """
        end, total = offset + len(data), self.manifest.update_bytes
        if end > total:
            raise TransferRefused(
                f"saw a chunk that ends at {end}, the manifest says {total} bytes; pack the update again",
                reason="too-large",
            )
        if len(data) > MAX_CHUNK_BYTES or (len(data) < MIN_CHUNK_BYTES and end != total) or not data:
            raise TransferRefused(
                f"saw a chunk of {len(data)} bytes, wanted {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}", reason="bad-chunk"
            )
        with self.changed:
            self._require_holder(token)
            self.partial.append(offset=offset, data=data, checksum=checksum)

    def settle(self) -> int:
        """Make what arrived durable; returns the offset reached."""
        with self.changed:
            if not self.admitting:
                self.partial.sync()
            return self.partial.offset

    def claim(self, token: str, interested: Callable[[], bool]) -> Signed | None:
        """Take the decision on oneself, or wait for whoever has.

        Args:
            interested: whether the caller still waits for an answer.

        Returns:
            The receipt if another session got one, else None: the caller must `decide`.

        Raises:
            TransferRefused: reason "superseded", "busy", or "wrong-offset" when bytes are missing.
        """
        with self.changed:
            self._require_holder(token)
            while self.admitting and interested():
                self.changed.wait(_WAIT_SECONDS)
            if self.receipt is not None:
                return self.receipt
            if self.admitting:
                raise TransferRefused("the contribution is being admitted; ask again", reason="busy")
            if self.partial.offset != self.manifest.update_bytes:
                raise TransferRefused(
                    f"saw {self.partial.offset} of {self.manifest.update_bytes} bytes; push the rest",
                    reason="wrong-offset",
                )
            self.admitting = True
            return None

    def decide(self, policy: TransferPolicy) -> Signed:
        """Verify the digest and let the policy admit; only after `claim` gave None.

        Raises:
            TransferRefused: reason "digest-mismatch"; the bytes are dropped.
            MotetError: whatever the policy raises; the bytes are kept unless it is AdmissionRefused.
        """
        receipt: Signed | None = None
        try:
            self._require_digest()
            receipt = policy.admit(self.signed, self.partial.path, self.partial.received)
            self.partial.remove()
            return receipt
        except AdmissionRefused:
            with self.changed:
                self.partial.start_over()
            raise
        finally:
            with self.changed:
                self.receipt, self.admitting = receipt, False
                self.changed.notify_all()

    def _require_digest(self) -> None:
        self.partial.sync()
        digest = file_digest(self.partial.path)
        if digest != self.manifest.update:
            with self.changed:
                self.partial.start_over()
            raise TransferRefused(
                f"the update's digest is {digest}, its manifest says {self.manifest.update}; "
                "what arrived was dropped, send it again",
                reason="digest-mismatch",
            )

    def _require_holder(self, token: str) -> None:
        if self.holder != token:
            raise TransferRefused(
                "another upload of the same contribution has taken over; let that one finish", reason="superseded"
            )
