"""The client's end of the line: a TLS channel that trusts one private authority, and patience with it.

channel = connect(charter.addresses.data_plane, charter.certificate_authority.encode())
probe(channel)      # TransferError unless a server answers
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc  # type: ignore[import-untyped]

from motet.protocols.errors import SignatureError, TransferBroken
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, SigningKey, seal
from motet.protocols.transfer import expert_transfer_pb2 as pb2
from motet.protocols.transfer.access import AccessRequest, Action
from motet.protocols.transfer.expert_transfer_pb2_grpc import ExpertTransferStub
from motet.protocols.transfer.refusals import understanding

T = TypeVar("T")

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called on the caller's thread with bytes done and bytes in total; what it raises ends the transfer."""

CALL_SECONDS = 60.0
"""How long a call that only looks something up may take."""

_FRAME_BYTES = 5
_OPTIONS = (
    ("grpc.max_receive_message_length", 3 << 20),
    ("grpc.max_send_message_length", 3 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),  # an admission may take minutes without a byte
    ("grpc.http2.bdp_probe", 0),  # or the receive window grows with the connection's speed
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 0),  # retrying is done here, where bytes are counted
    ("grpc.use_local_subchannel_pool", 1),
)


def connect(address: str, certificate_authority: bytes) -> grpc.Channel:
    """A channel to host:port, made when first used; close it when done.

    Args:
        address: host:port; the host must be in the server's certificate.
        certificate_authority: PEM of the only authority trusted.
    """
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate_authority), options=_OPTIONS)


def probe(channel: grpc.Channel, *, seconds: float = 5.0) -> None:
    """See whether the service answers.

    Raises:
        TransferBroken: it does not.
    """
    with understanding():
        ExpertTransferStub(channel).Nonce(pb2.NonceRequest(), timeout=seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How often to begin again after the line broke, and how long to wait before; progress starts the count anew."""

    attempts: int = 10
    first_seconds: float = 0.25
    longest_seconds: float = 8.0

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, 1 the first."""
        return float(min(self.longest_seconds, self.first_seconds * 2.0 ** (failures - 1)))


def persist(attempt: Callable[[], T], *, reached: Callable[[], int], patience: Patience) -> T:
    """Call `attempt` until it returns, beginning again after `TransferBroken`.

    Args:
        reached: how far the transfer has come; when it grows, the count of failures starts anew.

    Raises:
        TransferBroken: too many failures in a row.
    """
    failures, furthest = 0, reached()
    while True:
        try:
            return attempt()
        except TransferBroken as error:
            if reached() > furthest:
                failures, furthest = 0, reached()
            failures += 1
            if failures >= patience.attempts:
                raise
            if failures == 1:
                log.warning("%s; trying again for a while", str(error).partition(";")[0])
            time.sleep(patience.delay(failures))


class Message(Protocol):
    """What protobuf messages have in common here."""

    def ByteSize(self) -> int: ...  # noqa: N802


class Meter:
    """Counts what is sent: serialised messages and gRPC's five bytes before each."""

    __slots__ = ("sent_bytes",)

    def __init__(self) -> None:
        self.sent_bytes = 0

    def count(self, message: Message) -> None:
        """Add one message."""
        self.sent_bytes += message.ByteSize() + _FRAME_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who calls: the stub, the owner's key and the coordinator that the requests are for."""

    stub: ExpertTransferStub
    key: SigningKey
    audience: str
    meter: Meter

    def access(self, action: Action, subject: str) -> bytes:
        """A fresh nonce, signed into a request."""
        request = pb2.NonceRequest()
        with understanding():
            nonce = self.stub.Nonce(request, timeout=CALL_SECONDS).nonce
        self.meter.count(request)
        access = AccessRequest(
            action=action, nonce=nonce, audience=self.audience, subject=subject, owner=self.key.public
        )
        return seal(access, self.key).canonical()

    def begin(self, request: pb2.BeginRequest) -> pb2.BeginReply:
        """Open a session."""
        with understanding():
            reply = self.stub.Begin(request, timeout=CALL_SECONDS)
        self.meter.count(request)
        return reply


def open_receipt(data: bytes, *, coordinator: str, contribution: str) -> Signed:
    """Verify a receipt: the coordinator signed it and it is about this contribution.

    Raises:
        SignatureError: it is another's or about something else.
    """
    signed = Signed.parse(data)
    receipt = signed.open(Receipt, by=coordinator)
    if receipt.contribution != contribution:
        raise SignatureError(f"saw a receipt for {receipt.contribution}, wanted one for {contribution}")
    return signed
