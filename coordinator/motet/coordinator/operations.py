"""The coordinator's processes: each part alone, for containers, or all of them under one command.

    run_superlink(home); run_data_plane(home); run_federation(home, settings={"min-owners": 3})
    run_all(home)                             # the three as children, until a signal

A run ends when gather, assembly and evaluation are through; SuperLink and data plane go on until a signal.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from motet.coordinator.federation import Federation
from motet.coordinator.flower_link import SuperLink
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.run_record import RunState, wait_for_run
from motet.coordinator.service import serve_data_plane
from motet.protocols.errors import ConfigurationError, FederationError
from motet.protocols.processes import Troupe

Announce = Callable[[str], None]
_CHECK_SECONDS = 0.5


def run_superlink(directory: Path, *, listen: str | None = None, announce: Announce) -> None:
    """Become the SuperLink: this process is replaced by it.

    Args:
        directory: the coordinator's home.
        listen: host:port; None is the charter's address. Keep it on loopback: its Control API has no authentication.
        announce: told one line.

    Raises:
        FederationError: the port is in use, or the address is not this machine's.
    """
    link = _link(directory, listen)
    _require_free(link.host, link.port)
    announce(f"SuperLink starting on {link.address}")
    command, environment = link.command(), link.environment()
    os.execvpe(command[0], command, environment)  # noqa: S606 - our own command


def run_data_plane(directory: Path, *, listen: str | None = None, announce: Announce) -> None:
    """Serve ExpertTransfer until a signal."""
    serve_data_plane(CoordinatorHome(directory), listen=listen, announce=announce)


def run_federation(
    directory: Path,
    *,
    superlink: str | None = None,
    settings: Mapping[str, str | int | float] | None = None,
    announce: Announce,
) -> RunState:
    """Let the enrolled owners' nodes in, start a run and follow it to its end.

    Owners enrolled while it goes on are let in too. Interrupting this leaves the run to the SuperLink.

    Raises:
        FederationError: the SuperLink does not answer, or the run failed.
    """
    link = _link(directory, superlink)
    with Federation.open(directory) as federation:
        link.wait_until_ready(lambda: None)
        registered = dict(federation.flower_keys())
        link.register_all(registered)
        run = link.submit(dict(settings or {}))
        announce(f"run {run} started")

        def status() -> str:
            late = {name: key for name, key in federation.flower_keys().items() if name not in registered}
            link.register_all(late)
            registered.update(late)
            return link.status(run)

        state = wait_for_run(directory, run, status=status, on_change=_Teller(announce))
    announce(f"run {run} done, composite {state.composite}")
    return state


def run_all(directory: Path, *, announce: Announce) -> None:
    """All parts as children of this process, until SIGTERM or SIGINT; a part that ends early ends all.

    Raises:
        FederationError: a part ended early; the message has the end of its log.
    """
    CoordinatorHome(directory).close()
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with Troupe(logs=directory / "logs") as troupe:
        for part in ("superlink", "data-plane"):
            troupe.start(part, _command(part, directory))
        troupe.start("run", _command("run", directory), may_end=True)
        announce(f"coordinator running; logs in {directory / 'logs'}; Ctrl-C ends it")
        told = False
        while not ending.wait(_CHECK_SECONDS):
            if not told and not troupe.running("run"):
                troupe.check()
                told = True
                announce(f"the run is through: motet report --dir {directory}; serving until Ctrl-C")
            troupe.check()


def _command(part: str, directory: Path) -> list[str]:
    return [sys.executable, "-m", "motet.cli", "coordinate", part, "--dir", str(directory)]


def _require_free(host: str, port: int) -> None:
    """Flower would say so only somewhere in its log, and end with 1."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise FederationError(
            f"cannot listen on {host}:{port}: the port is in use, or the address is not this machine's "
            f"({error.strerror}); choose another"
        ) from error


def _link(directory: Path, address: str | None) -> SuperLink:
    home = CoordinatorHome(directory)
    try:
        host, _, port = (address or home.charter.addresses.flower).rpartition(":")
        if not host or not port.isdigit():
            raise ConfigurationError(f"saw the address {address!r}, wanted host:port")
        return SuperLink(home=home.path, host=host, port=int(port), tls=home.tls())
    finally:
        home.close()


class _Teller:
    """Tells what is new in a run, one line per owner and step."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce
        self._told: set[str] = set()

    def __call__(self, state: RunState) -> None:
        lines = [f"{state.phase}: {owner.name} {owner.job or 'not heard of yet'}" for owner in state.owners.values()]
        for line in [f"phase {state.phase}", *lines]:
            if line not in self._told:
                self._told.add(line)
                self._announce(line)
