"""The coordinator's data plane as a process: ExpertTransfer over TLS on the charter's address, until told to stop.

    serve_data_plane(CoordinatorHome(path), announce=lambda line: print(line, flush=True))

The service renews its certificate when it starts, writes nothing to standard output of its own, and on SIGTERM or
SIGINT lets running calls end before it closes the ledger.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from motet.coordinator.home import CoordinatorHome
from motet.coordinator.intake import Intake
from motet.protocols.transfer import serve

GRACE_SECONDS = 10.0
"""How long running calls may still take after a signal; an upload that is cut resumes later."""

_log = logging.getLogger(__name__)


def serve_data_plane(
    home: CoordinatorHome,
    *,
    listen: str | None = None,
    announce: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT, or `stop`. Closes the home at the end.

    Args:
        home: the coordinator's home.
        listen: host:port to bind; None is the charter's data-plane address. Behind a proxy or in a container, where
            the charter's name is not this machine's, say 0.0.0.0:port.
        announce: told one line when the service answers.
        stop: ends the service when set; signals set it too when this is the main thread.

    Raises:
        FederationError: the port is in use, or the address is not this machine's.
        LedgerError: the ledger does not hold.
        ConfigurationError: the home or its TLS files are not usable.
    """
    address = listen or home.charter.addresses.data_plane
    ending = stop or threading.Event()
    try:
        intake, tls = Intake(home), home.tls()
        server = serve(
            intake,
            address=address,
            certificate_chain=tls.server.read_bytes(),
            private_key=tls.server_key.read_bytes(),
        )
        with set_by_signals(ending):
            try:
                (announce or _log.info)(f"data plane of {home.charter.name} ready on {address}")
                ending.wait()
            finally:
                server.stop(GRACE_SECONDS).wait()
    finally:
        home.close()


@contextmanager
def set_by_signals(event: threading.Event) -> Iterator[None]:
    """While open, SIGTERM and SIGINT set the event, if this is the main thread: only that one may ask for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
