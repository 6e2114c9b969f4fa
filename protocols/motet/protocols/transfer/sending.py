"""The owner's side of an upload: it resumes by itself, and a second call resumes after a crash.

with connect(address, authority) as channel:
    outcome = upload(channel, signed=signed, update=path, key=key, audience=audience_of(charter),
                     coordinator=charter.coordinator)
outcome.receipt.open(Receipt).status     # "admitted" or "refused"
"""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc  # type: ignore[import-untyped]

from motet.protocols.canonical import file_digest
from motet.protocols.contribution import Contribution, Withdrawal
from motet.protocols.errors import TransferBroken, TransferRefused
from motet.protocols.signing import Signed, SigningKey
from motet.protocols.transfer import expert_transfer_pb2 as pb2
from motet.protocols.transfer.channel import CALL_SECONDS, Caller, Meter, Patience, Progress, open_receipt, persist
from motet.protocols.transfer.expert_transfer_pb2_grpc import ExpertTransferStub
from motet.protocols.transfer.partial import MAX_CHUNK_BYTES
from motet.protocols.transfer.refusals import understanding
from motet.protocols.transfer.stall import Watchdog

if TYPE_CHECKING:
    from motet.protocols.transfer.expert_transfer_pb2_grpc import Pending

_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadOutcome:
    """What came of an upload.

    Attributes:
        receipt: the coordinator's verified word, a signed `Receipt`, admitted or refused.
        sent_bytes: serialised messages sent by this call, with gRPC's framing, repeats included.
    """

    receipt: Signed
    sent_bytes: int


def upload(
    channel: grpc.Channel,
    *,
    signed: Signed,
    update: Path,
    key: SigningKey,
    audience: str,
    coordinator: str,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> UploadOutcome:
    """Send an update and its signed manifest; begins again where it was after the line broke.

    Args:
        signed: the manifest, a signed `Contribution`.
        update: the file that it describes.
        key: the owner's key, which signed the manifest.
        audience: `audience_of` the charter.
        coordinator: the public key that must have signed the receipt.
        progress: called with bytes sent and the update's size.

    Raises:
        TransferRefused: the coordinator does not want it (`reason`), or the file is not what the manifest says.
        TransferBroken: the line broke too often; the same call resumes.
        SignatureError: the receipt is not the coordinator's.
    """
    manifest = signed.open(Contribution, by=key.public)
    size = update.stat().st_size
    if size != manifest.update_bytes:
        raise _changed(update, f"{size} bytes", f"{manifest.update_bytes} bytes")
    caller = Caller(stub=ExpertTransferStub(channel), key=key, audience=audience, meter=Meter())
    sending = _Sending(
        caller=caller, signed=signed, manifest=manifest, update=update, progress=progress or (lambda done, total: None)
    )
    data = persist(sending.attempt, reached=lambda: sending.granted, patience=patience or Patience())
    receipt = open_receipt(data, coordinator=coordinator, contribution=manifest.digest)
    return UploadOutcome(receipt=receipt, sent_bytes=caller.meter.sent_bytes)


def withdraw(
    channel: grpc.Channel,
    *,
    signed: Signed,
    key: SigningKey,
    audience: str,
    coordinator: str,
    patience: Patience | None = None,
) -> Signed:
    """Hand in a signed `Withdrawal`; returns the coordinator's verified receipt.

    Raises:
        TransferRefused: the coordinator knows no such contribution of this owner (`reason`).
        TransferBroken: the line broke too often; calling again is harmless.
        SignatureError: the receipt is not the coordinator's.
    """
    withdrawal = signed.open(Withdrawal, by=key.public)
    caller = Caller(stub=ExpertTransferStub(channel), key=key, audience=audience, meter=Meter())

    def attempt() -> bytes:
        access = caller.access("withdraw", withdrawal.digest)
        request = pb2.WithdrawRequest(access=access, withdrawal=signed.canonical())
        with understanding():
            return caller.stub.Withdraw(request, timeout=CALL_SECONDS).receipt

    data = persist(attempt, reached=lambda: 0, patience=patience or Patience())
    return open_receipt(data, coordinator=coordinator, contribution=withdrawal.contribution)


@dataclass(kw_only=True, slots=True)
class _Sending:
    """One upload through all its attempts.

    Attributes:
        granted: the furthest offset that the server vouched for.
        sent: the offset behind the last chunk handed to the line.
    """

    caller: Caller
    signed: Signed
    manifest: Contribution
    update: Path
    progress: Progress
    granted: int = 0
    sent: int = 0
    _mismatched: bool = field(default=False, init=False)

    def attempt(self) -> bytes:
        """Begin, push what is missing, commit; returns the receipt as it came."""
        access = self.caller.access("contribute", self.manifest.digest)
        reply = self.caller.begin(pb2.BeginRequest(access=access, manifest=self.signed.canonical()))
        if reply.receipt:
            return reply.receipt
        total = self.manifest.update_bytes
        if reply.offset > total:
            raise TransferRefused(f"the coordinator claims {reply.offset} of {total} bytes", reason="wrong-offset")
        self.granted = max(self.granted, reply.offset)
        self._push(reply.session, reply.offset)
        return self._commit(reply.session)

    def _push(self, session: str, offset: int) -> None:
        total = self.manifest.update_bytes
        self.sent = offset
        self.progress(offset, total)
        if offset == total:
            return
        call = self.caller.stub.Push.future(self._chunks(session, offset))
        try:
            with understanding(), Watchdog(call.cancel) as watchdog:
                while (reply := _poll(call)) is None:
                    if self.sent != offset:
                        offset = self.sent
                        watchdog.touch()
                        self.progress(offset, total)
        finally:
            call.cancel()
        self.granted = max(self.granted, reply.offset)
        if reply.offset != total:
            raise TransferBroken(f"the coordinator has {reply.offset} of {total} bytes; run the same command again")
        self.progress(total, total)

    def _chunks(self, session: str, offset: int) -> Iterator[pb2.Chunk]:
        with self.update.open("rb") as file:
            file.seek(offset)
            while data := file.read(MAX_CHUNK_BYTES):
                chunk = pb2.Chunk(session=session, offset=offset, data=data, crc32=zlib.crc32(data))
                yield chunk
                self.caller.meter.count(chunk)
                offset += len(data)
                self.sent = offset

    def _commit(self, session: str) -> bytes:
        request = pb2.CommitRequest(session=session)
        self.caller.meter.count(request)
        try:
            with understanding():
                return self.caller.stub.Commit(request).receipt
        except TransferRefused as error:
            if error.reason != "digest-mismatch" or self._mismatched:
                raise
            self._mismatched = True
            self.granted = 0
            digest = file_digest(self.update)
            if digest != self.manifest.update:
                raise _changed(self.update, digest, self.manifest.update) from error
            raise TransferBroken(str(error)) from error


def _poll(call: "Pending[pb2.PushReply]") -> pb2.PushReply | None:
    """The reply, or None after a moment without one."""
    with suppress(grpc.FutureTimeoutError):
        return call.result(timeout=_POLL_SECONDS)
    return None


def _changed(update: Path, saw: str, wanted: str) -> TransferRefused:
    return TransferRefused(
        f"{update}: saw {saw}, the manifest says {wanted}; pack and sign the contribution again",
        reason="digest-mismatch",
    )
