"""How a refusal travels: a gRPC status, a stable word beside it, and the message as its details.

The word is in the trailing metadata `motet-reason`; docs/transfer.md lists them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import grpc  # type: ignore[import-untyped]

from motet.protocols.errors import (
    AdmissionRefused,
    DocumentError,
    MotetError,
    SignatureError,
    StorageError,
    TransferBroken,
    TransferError,
    TransferRefused,
)

log = logging.getLogger(__name__)

REASON_KEY = "motet-reason"
TRANSIENT = frozenset({"bad-checksum", "busy", "stale-nonce", "unknown-session", "wrong-offset"})
"""Reasons that a client answers by beginning again."""

_MESSAGE_CHARACTERS = 2000
_CODES = {
    "bad-checksum": grpc.StatusCode.DATA_LOSS,
    "bad-signature": grpc.StatusCode.UNAUTHENTICATED,
    "busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "digest-mismatch": grpc.StatusCode.DATA_LOSS,
    "storage": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "superseded": grpc.StatusCode.ABORTED,
    "unknown-owner": grpc.StatusCode.PERMISSION_DENIED,
    "unknown-publication": grpc.StatusCode.NOT_FOUND,
    "unknown-file": grpc.StatusCode.NOT_FOUND,
    "wrong-audience": grpc.StatusCode.PERMISSION_DENIED,
    "wrong-offset": grpc.StatusCode.OUT_OF_RANGE,
}


@contextmanager
def refusing(context: grpc.ServicerContext) -> Iterator[None]:
    """Server side: answer an error with its status, reason and message; what is not ours goes to the log only."""
    try:
        yield
    except grpc.RpcError:  # the client is gone
        raise
    except MotetError as error:
        reason = _reason_of(error)
        context.set_trailing_metadata(((REASON_KEY, reason),))
        context.abort(_CODES.get(reason, grpc.StatusCode.FAILED_PRECONDITION), str(error)[:_MESSAGE_CHARACTERS])
    except Exception:
        log.exception("a data plane call failed")
        context.set_trailing_metadata(((REASON_KEY, "failed"),))
        context.abort(grpc.StatusCode.INTERNAL, "the coordinator failed and its log says why; tell the coordinator")


@contextmanager
def understanding() -> Iterator[None]:
    """Client side: turn a failed call into `TransferRefused` or, if trying again may help, `TransferBroken`."""
    try:
        yield
    except grpc.RpcError as error:
        raise _error_of(error) from error
    except grpc.FutureCancelledError as error:
        raise TransferBroken("the coordinator stopped taking bytes; run the same command again to resume") from error


def _reason_of(error: MotetError) -> str:
    match error:
        case TransferRefused() | AdmissionRefused():
            return error.reason
        case StorageError():
            return "storage"
        case SignatureError():
            return "bad-signature"
        case DocumentError():
            return "bad-document"
        case _:
            return "failed"


def _error_of(error: grpc.RpcError) -> TransferError:
    details = error.details() or "no details"
    reason = dict(error.trailing_metadata() or ()).get(REASON_KEY)
    if reason is None:
        return TransferBroken(
            f"the connection to the coordinator broke ({error.code().name}: {details}); what arrived is kept, "
            "run the same command again to resume"
        )
    if reason in TRANSIENT:
        return TransferBroken(f"the coordinator asks to begin again ({reason}): {details}")
    return TransferRefused(details, reason=reason)
