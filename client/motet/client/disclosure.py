"""What an error on the owner's machine may tell the coordinator: of which kind it is, and what to look at.

Our messages name local paths, columns and settings, other libraries' may quote anything: both stay in the owner's log.
Abroad goes one fixed sentence per class of error, and the word by which the coordinator itself refused something.

    except Exception as error:
        spool.update(job, "failed", detail=disclosed(error))

    with disclosing():                # in the ClientApp, whose errors Flower sends to the coordinator
        ...
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from motet.protocols.errors import (
    AnchorError,
    AnchorMismatch,
    AssemblyError,
    ConfigurationError,
    DataError,
    DocumentError,
    ExpertError,
    FederationError,
    MotetError,
    SignatureError,
    SpoolError,
    StatisticsError,
    StorageError,
    TrainingError,
    TransferBroken,
    TransferError,
    TransferRefused,
)

_SENTENCES: dict[type[BaseException], str] = {
    AnchorError: "the anchor cannot be used",
    AnchorMismatch: "the anchor is not the one that the charter pins",
    AssemblyError: "the composite is not what its digest says",
    ConfigurationError: "owner.toml or the charter cannot be used",
    DataError: "the text cannot be used",
    DocumentError: "a document cannot be read",
    ExpertError: "the expert does not fit the anchor, or is not finite",
    FederationError: "the request does not fit the charter that the owner joined, or what the owner offers",
    MotetError: "an error of Motet",
    SignatureError: "a signature does not hold",
    SpoolError: "the spool cannot be used",
    StatisticsError: "the statistics cannot be used",
    StorageError: "the disk is full or not writable",
    TrainingError: "training failed or diverged",
    TransferBroken: "the coordinator's data plane cannot be reached, or the connection to it broke",
    TransferError: "the transfer failed",
}

_log = logging.getLogger(__name__)


def disclosed(error: BaseException) -> str:
    """One line about an error that holds nothing of the owner's: its kind, and where the owner finds the rest."""
    if isinstance(error, TransferRefused):
        what = f"refused by the coordinator: {error.reason}"
    else:
        what = next((_SENTENCES[kind] for kind in type(error).__mro__ if kind in _SENTENCES), "an unforeseen error")
    return f"{type(error).__name__}: {what}; the log on the owner's machine says more"


@contextmanager
def disclosing() -> Iterator[None]:
    """Let no error leave the block but a `FederationError` of its kind; the log keeps what it was."""
    try:
        yield
    except Exception as error:
        _log.exception("cannot answer the coordinator")
        raise FederationError(disclosed(error)) from None
