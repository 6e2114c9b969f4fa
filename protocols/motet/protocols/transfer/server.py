"""The data plane as a process serves it: ExpertTransfer behind TLS, nothing in the clear.

server = serve(policy, address="0.0.0.0:9443", certificate_chain=chain, private_key=key)
server.wait_for_termination()
"""

import logging
from concurrent.futures import ThreadPoolExecutor

import grpc  # type: ignore[import-untyped]

from motet.protocols.canonical import storage_errors
from motet.protocols.errors import FederationError
from motet.protocols.transfer.expert_transfer_pb2_grpc import add_ExpertTransferServicer_to_server
from motet.protocols.transfer.partial import forget_stale
from motet.protocols.transfer.policy import TransferPolicy
from motet.protocols.transfer.service import ExpertTransferService
from motet.protocols.transfer.stall import STALL_SECONDS

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 3 << 20
STALE_DAYS = 30.0
"""How long an unfinished upload is kept."""

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server beside the first
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),  # an admission may take minutes without a byte
    ("grpc.http2.bdp_probe", 0),  # or the receive window grows with the connection's speed
)


def serve(
    policy: TransferPolicy,
    *,
    address: str,
    certificate_chain: bytes,
    private_key: bytes,
    max_workers: int = 64,
    stall_seconds: float = STALL_SECONDS,
) -> grpc.Server:
    """Start the service, TLS only; stop it with `.stop(grace_seconds)`.

    Args:
        policy: the coordinator's decisions.
        address: host:port to listen on.
        certificate_chain: PEM, the server's certificate first.
        private_key: PEM, unencrypted.
        max_workers: calls at a time; each keeps one thread, and a call beyond them is told to try again.
        stall_seconds: how long a peer may stand still in the middle of a stream.

    Raises:
        FederationError: the address cannot be bound, for example because the port is in use.
        StorageError: the intake directory cannot be made.
    """
    with storage_errors(policy.intake_directory):
        policy.intake_directory.mkdir(parents=True, exist_ok=True)
        forget_stale(policy.intake_directory, days=STALE_DAYS)
    threads = ThreadPoolExecutor(max_workers=max_workers, thread_name_prefix="motet-transfer")
    server = grpc.server(threads, options=_OPTIONS, maximum_concurrent_rpcs=max_workers)
    add_ExpertTransferServicer_to_server(ExpertTransferService(policy, stall_seconds=stall_seconds), server)
    try:
        server.add_secure_port(address, grpc.ssl_server_credentials([(private_key, certificate_chain)]))
    except RuntimeError as error:
        raise FederationError(
            f"cannot listen on {address}: the port is in use, or the address is not this machine's; choose another"
        ) from error
    server.start()
    log.info("the data plane listens on %s", address)
    return server
