"""The server's side of ExpertTransfer: checks who asks, keeps what arrives, lets the policy decide.

Memory does not grow with the size of an update: chunks go to disk as they come. `server.serve` puts it behind TLS.
"""

import shutil
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import BinaryIO

import grpc  # type: ignore[import-untyped]

from motet.protocols.canonical import hex_of
from motet.protocols.contribution import Contribution, Withdrawal
from motet.protocols.errors import StorageError, TransferRefused
from motet.protocols.signing import Signed
from motet.protocols.transfer import expert_transfer_pb2 as pb2
from motet.protocols.transfer.access import AccessRequest, Action, charter_of
from motet.protocols.transfer.expert_transfer_pb2_grpc import ExpertTransferServicer
from motet.protocols.transfer.nonces import Nonces
from motet.protocols.transfer.partial import MAX_CHUNK_BYTES, Partial, forget
from motet.protocols.transfer.policy import TransferPolicy
from motet.protocols.transfer.publication import MAX_MANIFEST_BYTES, Listing, harmless
from motet.protocols.transfer.refusals import refusing
from motet.protocols.transfer.sessions import Reading, Sessions
from motet.protocols.transfer.stall import STALL_SECONDS, Watchdog
from motet.protocols.transfer.uploads import Upload

MAX_STRANGERS = 16
"""Push streams that may wait for their first chunk: each keeps a thread, and anybody can open one."""
MAX_GUEST_STREAMS = 8
"""Files that all guests together may be sent at a time."""

_GUESTS = "guests"
"""Whose sessions those of all guests are: together they have as many as one owner."""


class ExpertTransferService(ExpertTransferServicer):
    """The servicer; `serve` puts it behind TLS."""

    def __init__(self, policy: TransferPolicy, *, stall_seconds: float = STALL_SECONDS) -> None:
        self._policy = policy
        self._stall_seconds = stall_seconds
        self._nonces = Nonces()
        self._sessions = Sessions()
        self._strangers = threading.BoundedSemaphore(MAX_STRANGERS)
        self._guest_streams = threading.BoundedSemaphore(MAX_GUEST_STREAMS)

    def Nonce(self, request: pb2.NonceRequest, context: grpc.ServicerContext) -> pb2.NonceReply:  # noqa: N802
        """A nonce for anybody who asks."""
        return pb2.NonceReply(nonce=self._nonces.issue())

    def Begin(self, request: pb2.BeginRequest, context: grpc.ServicerContext) -> pb2.BeginReply:  # noqa: N802
        """Open a session to push a contribution or to fetch a publication."""
        with refusing(context):
            if request.manifest:
                return self._begin_upload(request)
            return self._begin_reading(self._authorised(request.access, "fetch"))

    def Push(self, request_iterator: Iterator[pb2.Chunk], context: grpc.ServicerContext) -> pb2.PushReply:  # noqa: N802
        """Write the chunks behind what is there."""
        upload: Upload | None = None
        with refusing(context), Watchdog(context.cancel, seconds=self._stall_seconds) as watchdog:
            first = self._first(request_iterator)
            try:
                for chunk in chain(first, request_iterator):
                    watchdog.touch()
                    upload = self._sessions.upload(chunk.session)
                    upload.append(chunk.session, offset=chunk.offset, data=chunk.data, checksum=chunk.crc32)
            finally:
                offset = 0 if upload is None else upload.settle()
            return pb2.PushReply(offset=offset)

    def Commit(self, request: pb2.CommitRequest, context: grpc.ServicerContext) -> pb2.ReceiptReply:  # noqa: N802
        """Verify and admit; a second commit of the same upload waits for the first one's receipt."""
        with refusing(context):
            upload = self._sessions.upload(request.session)
            receipt = upload.claim(request.session, context.is_active)
            if receipt is None:
                receipt = upload.decide(self._policy)
            self._sessions.close(request.session)
            return pb2.ReceiptReply(receipt=receipt.canonical())

    def Fetch(self, request: pb2.FetchRequest, context: grpc.ServicerContext) -> Iterator[pb2.Chunk]:  # noqa: N802
        """One file of the session's publication, from an offset."""
        with refusing(context), Watchdog(context.cancel, seconds=self._stall_seconds) as watchdog:
            reading = self._sessions.reading(request.session)
            if self._policy.publication(reading.digest) is None:  # a member may have been withdrawn since
                raise _unpublished(reading.digest)
            if request.name != reading.manifest and request.name not in reading.listing.files:
                raise TransferRefused(f"the publication has no file {request.name!r}", reason="unknown-file")
            with self._place_for(reading), _open_published(reading, request.name) as file:
                offset = file.seek(request.offset)
                while data := file.read(MAX_CHUNK_BYTES):
                    self._sessions.reading(request.session)
                    yield pb2.Chunk(offset=offset, data=data, crc32=zlib.crc32(data))
                    watchdog.touch()
                    offset += len(data)

    def Withdraw(self, request: pb2.WithdrawRequest, context: grpc.ServicerContext) -> pb2.ReceiptReply:  # noqa: N802
        """Hand a signed withdrawal to the policy."""
        with refusing(context):
            access = self._authorised(request.access, "withdraw")
            signed = Signed.parse(request.withdrawal)
            withdrawal = signed.open(Withdrawal, by=access.owner)
            _require_subject(access, withdrawal.digest)
            return pb2.ReceiptReply(receipt=self._policy.withdraw(signed).canonical())

    def _first(self, chunks: Iterator[pb2.Chunk]) -> list[pb2.Chunk]:
        """Wait for the first chunk, which says whose stream this is; only so many may wait, whoever they are."""
        if not self._strangers.acquire(blocking=False):
            raise TransferRefused("too many streams have begun without a chunk; try again", reason="busy")
        try:
            first = list(islice(chunks, 1))
        finally:
            self._strangers.release()
        for chunk in first:
            self._sessions.upload(chunk.session)
        return first

    def _authorised(self, access: bytes, action: Action) -> AccessRequest:
        """Check signature, audience, enrolment and nonce, in this order: only owners can spend nonces."""
        signed = Signed.parse(access)
        request = signed.open(AccessRequest)
        signed.open(AccessRequest, by=request.owner)
        if request.audience != self._policy.audience:
            raise TransferRefused(
                f"saw a request for {request.audience}, this is {self._policy.audience}; use its charter",
                reason="wrong-audience",
            )
        if request.action != action:
            raise TransferRefused(f"saw a request to {request.action}, wanted one to {action}", reason="wrong-action")
        guest = self._guest(request)
        if guest and not (action == "fetch" and self._policy.guests):
            raise TransferRefused(
                f"the owner {request.owner} is not enrolled here; ask the coordinator, then try again",
                reason="unknown-owner",
            )
        self._nonces.spend(request.nonce, guest=guest)
        return request

    def _guest(self, request: AccessRequest) -> bool:
        return not self._policy.enrolled(request.owner)

    @contextmanager
    def _place_for(self, reading: Reading) -> Iterator[None]:
        """Each stream keeps a thread: guests have a few of them, owners the rest."""
        if reading.guest and not self._guest_streams.acquire(blocking=False):
            raise TransferRefused("too many guests are fetching; try again", reason="busy")
        try:
            yield
        finally:
            if reading.guest:
                self._guest_streams.release()

    def _begin_upload(self, request: pb2.BeginRequest) -> pb2.BeginReply:
        access = self._authorised(request.access, "contribute")
        signed = Signed.parse(request.manifest)
        manifest = signed.open(Contribution, by=access.owner)
        _require_subject(access, manifest.digest)
        receipt = self._policy.check(manifest, signed)
        if receipt is not None:
            forget(self._policy.intake_directory, hex_of(manifest.digest))  # a process may have died before it did
            return pb2.BeginReply(receipt=receipt.canonical())
        upload = self._sessions.share_upload(manifest.digest, lambda: self._start(manifest, signed))
        if upload.receipt is not None:
            return pb2.BeginReply(receipt=upload.receipt.canonical())
        self._require_room(upload)
        token = self._sessions.open(access.owner, upload)
        return pb2.BeginReply(session=token, offset=upload.hand_to(token))

    def _start(self, manifest: Contribution, signed: Signed) -> Upload:
        partial = Partial(self._policy.intake_directory, hex_of(manifest.digest))
        partial.label(signed.canonical())
        return Upload(manifest=manifest, signed=signed, partial=partial)

    def _require_room(self, upload: Upload) -> None:
        missing = upload.manifest.update_bytes - upload.partial.offset
        free = shutil.disk_usage(self._policy.intake_directory).free
        if missing > free:
            raise StorageError(
                f"the coordinator's disk is full: {free} bytes are free, wanted {missing}; what arrived is kept, "
                "ask the coordinator to make room and run the same command again"
            )

    def _begin_reading(self, access: AccessRequest) -> pb2.BeginReply:
        digest = self._meant(access.subject)
        found = self._policy.publication(digest)
        if found is None or not harmless(found[1]):
            raise _unpublished(digest)
        directory, manifest = found
        try:
            with (directory / manifest).open("rb") as file:
                listing = Listing.of(file.read(MAX_MANIFEST_BYTES), digest)
        except FileNotFoundError:
            raise _unpublished(digest) from None
        guest = self._guest(access)
        reading = Reading(digest=digest, directory=directory, manifest=manifest, listing=listing, guest=guest)
        token = self._sessions.open(_GUESTS if guest else access.owner, reading)
        return pb2.BeginReply(session=token, manifest=manifest)

    def _meant(self, subject: str) -> str:
        """The charter's digest asks for the newest composite under it; anything else for what it names."""
        if subject != charter_of(self._policy.audience):
            return subject
        current = self._policy.current()
        if current is None:
            raise TransferRefused(
                "no composite is published here yet; try again when the coordinator has assembled one",
                reason="unknown-publication",
            )
        return current


def _require_subject(access: AccessRequest, digest: str) -> None:
    if access.subject != digest:
        raise TransferRefused(
            f"the request is about {access.subject}, the document beside it is {digest}; sign a request for it",
            reason="wrong-subject",
        )


def _open_published(reading: Reading, name: str) -> BinaryIO:
    try:
        return (reading.directory / name).open("rb")
    except FileNotFoundError as error:
        raise TransferRefused(
            f"the publication's file {name!r} is gone from the coordinator; tell the coordinator", reason="unknown-file"
        ) from error


def _unpublished(digest: str) -> TransferRefused:
    return TransferRefused(
        f"nothing published here has the digest {digest}; ask for the latest one", reason="unknown-publication"
    )
