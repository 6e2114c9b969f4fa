"""The owner's processes: SuperNode and worker, each alone or both under one command.

run_worker(home); run_supernode(home); run_all(home)
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from motet.client.owner import OwnerHome
from motet.client.supernode import SuperNode, supervise
from motet.protocols.errors import FederationError
from motet.protocols.processes import Troupe

_WATCH_SECONDS = 0.5

Announce = Callable[[str], None]


def run_worker(directory: Path, *, once: bool = False, announce: Announce) -> None:
    """Run the spool's jobs until a signal, or with `once` until none is queued.

    Raises:
        FederationError: `once`, and jobs of this call failed.
        WorkerBusy, ConfigurationError, SignatureError: as the worker raises them.
    """
    from motet.client.worker import run_worker as work

    announce(f"worker of {directory} waiting for jobs")
    _tell_of_jobs()
    failed = work(directory.absolute(), once=once)
    if once and failed:
        raise FederationError(
            f"saw {', '.join(failed)} fail, wanted every job to end well; the log above says why, and a failed job is "
            "run again when the coordinator asks for it again"
        )


def run_supernode(directory: Path, *, superlink: str | None = None, announce: Announce) -> int:
    """Keep the owner's SuperNode running until a signal.

    Args:
        directory: the owner's home.
        superlink: host:port instead of the charter's.
        announce: told one line.

    Returns:
        The exit code.
    """
    home = OwnerHome.load(directory.absolute())
    node = SuperNode.of(home, superlink)
    announce(f"SuperNode of {home.config.name} connecting to {node.superlink}")
    return supervise(node.command, node.environment(), ready=node.reachable)


def run_all(directory: Path, *, superlink: str | None = None, announce: Announce) -> None:
    """The SuperNode as a child, the worker here; a signal ends both, and so does the end of the child.

    Raises:
        FederationError: the SuperNode's process ended; the message has the end of its log.
        WorkerBusy, ConfigurationError, SignatureError: as the worker raises them.
    """
    from motet.client.worker import run_worker as work

    OwnerHome.load(directory)
    command = [sys.executable, "-m", "motet.cli", "work", "supernode", "--dir", str(directory)]
    with Troupe(logs=directory / "logs") as troupe:
        troupe.start("supernode", [*command, *(["--superlink", superlink] if superlink else [])])
        announce(f"SuperNode's log in {directory / 'logs'}; worker of {directory} waiting for jobs")
        _tell_of_jobs()
        with _while_well(troupe) as stopping:
            work(directory.absolute(), stop=stopping)


def _tell_of_jobs() -> None:
    """Let the worker's log say when a job begins, waits for consent, or ends, without --verbose."""
    logging.getLogger("motet.client.worker").setLevel(logging.INFO)


@contextmanager
def _while_well(troupe: Troupe) -> Iterator[threading.Event]:
    """An event that is set when a child ends on its own; its FederationError is raised where the block ends."""
    stopping, over, found = threading.Event(), threading.Event(), list[FederationError]()

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            try:
                troupe.check()
            except FederationError as error:
                found.append(error)
                stopping.set()
                return

    watcher = threading.Thread(target=watch, name="watch the supernode", daemon=True)
    watcher.start()
    try:
        yield stopping
    finally:
        over.set()
        watcher.join()
    if found:
        raise found[0]
