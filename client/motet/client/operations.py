"""The owner's processes: SuperNode and worker, each alone or both under one command.

run_worker(home); run_supernode(home); run_all(home)
"""

import sys
from collections.abc import Callable
from pathlib import Path

from motet.client.owner import OwnerHome
from motet.client.supernode import SuperNode, supervise
from motet.protocols.processes import Troupe

Announce = Callable[[str], None]


def run_worker(directory: Path, *, once: bool = False, announce: Announce) -> None:
    """Run the spool's jobs until a signal, or with `once` until none is queued."""
    from motet.client.worker import run_worker as work

    announce(f"worker of {directory} waiting for jobs")
    work(directory.absolute(), once=once)


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
    return supervise(node.command, node.environment())


def run_all(directory: Path, *, announce: Announce) -> None:
    """The SuperNode as a child, the worker here; a signal ends both."""
    OwnerHome.load(directory)
    command = [sys.executable, "-m", "motet.cli", "work", "supernode", "--dir", str(directory)]
    with Troupe(logs=directory / "logs") as troupe:
        troupe.start("supernode", command)
        announce(f"SuperNode's log in {directory / 'logs'}")
        run_worker(directory, announce=announce)
