"""The coordinator's processes: each part alone, for containers, or all of them under one command.

    run_superlink(home); run_data_plane(home); run_federation(home, settings={"min-owners": 3})
    run_all(home, settings={"min-owners": 3})                # the three as children, until a signal

A run ends when gather, assembly and evaluation are through; SuperLink and data plane go on until a signal.
"""

import ipaddress
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from motet.coordinator.federation import Federation
from motet.coordinator.flower_link import SuperLink
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.run_record import OwnerProgress, RunState, read_run, under_way, wait_for_run
from motet.coordinator.service import serve_data_plane, set_by_signals
from motet.protocols.errors import ConfigurationError, FederationError
from motet.protocols.processes import Troupe

Announce = Callable[[str], None]
Settings = Mapping[str, str | int | float]
"""Over the Flower app's defaults: "min-owners", "gather-seconds", "evaluate-seconds", "poll-seconds", "shapley"."""

PATIENCE = 6
"""How often in a row the SuperLink may fail to answer before a run counts as lost."""
LOOKS = 6
"""Of so many looks at a run whose ServerApp lives, one asks the SuperLink: each question costs a second of CPU."""

_CHECK_SECONDS = 0.5
_NO_ANSWER = "unknown"
_RUNNING = "running"

_log = logging.getLogger(__name__)


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
    _warn_if_open(link, announce)
    command, environment = link.command(), link.environment()
    os.execvpe(command[0], command, environment)  # noqa: S606 - our own command


def run_data_plane(directory: Path, *, listen: str | None = None, announce: Announce) -> None:
    """Serve ExpertTransfer until a signal."""
    serve_data_plane(CoordinatorHome(directory), listen=listen, announce=announce)


def run_federation(
    directory: Path,
    *,
    superlink: str | None = None,
    settings: Settings | None = None,
    announce: Announce,
) -> RunState:
    """Let the enrolled owners' nodes in, start a run and follow it to its end.

    Owners enrolled while it goes on are let in too. Interrupting this leaves the run to the SuperLink, and the same
    command follows it again.

    Args:
        directory: the coordinator's home.
        superlink: host:port of the SuperLink; None is the charter's address.
        settings: over the app's defaults.
        announce: told one line for everything new.

    Raises:
        FederationError: the SuperLink does not answer, or the run failed.
    """
    link = _link(directory, superlink)
    with Federation.open(directory) as federation:
        link.wait_until_ready(lambda: None)
        known = federation.flower_keys()
        link.register_all(known)
        announce(f"nodes let in: {', '.join(sorted(known)) or 'none yet'}")
        run = _going_on(link, directory)
        if run is None:
            run = link.submit(dict(settings or {}))
            announce(f"run {run} started")
        else:
            announce(f"run {run} is going on; following it, with the settings that it was started with")
        watch = _Watch(
            link, run, federation.flower_keys, registered=set(known), alive=lambda: under_way(directory, run)
        )
        state = wait_for_run(directory, run, status=watch, on_change=_Teller(announce))
    announce(f"run {run} done, composite {state.composite}")
    return state


def _going_on(link: SuperLink, directory: Path) -> str | None:
    """The run that an earlier call left to this SuperLink, None if there is none or it has ended."""
    state = read_run(directory)
    if state is None or state.phase in ("done", "failed"):
        return None
    try:
        return None if link.status(state.run).startswith("finished") else state.run
    except FederationError:
        return None  # of another SuperLink's time


def run_all(directory: Path, *, settings: Settings | None = None, announce: Announce) -> None:
    """All parts as children of this process, until SIGTERM or SIGINT.

    The run may end, well or badly: owners still contribute, pull and withdraw. Another part that ends early ends all.

    Args:
        directory: the coordinator's home.
        settings: for the run, over the app's defaults.
        announce: told when all is up, what the run tells, and how it ended.

    Raises:
        FederationError: the SuperLink or the data plane ended early; the message has the end of its log.
    """
    ending = threading.Event()
    _warn_if_open(_link(directory, None), announce)
    news = _News(directory / "logs" / "run.log")
    with set_by_signals(ending), Troupe(logs=directory / "logs") as troupe:
        for part in ("superlink", "data-plane"):
            troupe.start(part, _command(part, directory))
        troupe.start("run", _command("run", directory, settings or {}), may_end=True)
        announce(f"coordinator running; logs in {directory / 'logs'}; Ctrl-C ends it")
        ended = False
        while not ending.wait(_CHECK_SECONDS):
            for line in news():
                announce(line)
            if not ended and not troupe.running("run"):
                ended = True
                announce(_how_it_ended(troupe, directory))
            troupe.check()


def _how_it_ended(troupe: Troupe, directory: Path) -> str:
    try:
        troupe.wait("run", timeout=1)
    except FederationError:
        return f"the run failed; serving until Ctrl-C; for another: motet coordinate run --dir {directory}"
    return f"the run is through: motet report --dir {directory}; serving until Ctrl-C"


def _command(part: str, directory: Path, settings: Settings | None = None) -> list[str]:
    options = [word for name, value in (settings or {}).items() for word in _option(name, value)]
    return [sys.executable, "-m", "motet.cli", "coordinate", part, "--dir", str(directory), *options]


def _option(name: str, value: str | int | float) -> tuple[str, ...]:
    """A setting as it is typed; what is on or off takes no value."""
    if isinstance(value, bool):
        return (f"--{name}",) if value else ()
    return f"--{name}", str(value)


def _warn_if_open(link: SuperLink, announce: Announce) -> None:
    if not _is_loopback(link.host):
        announce(
            "other hosts may reach the SuperLink, and whoever does can start runs on the owners' nodes: let a proxy "
            "expose its /v1/fleet/ only, as deploy/README.md shows, or `motet coordinate superlink --listen "
            "127.0.0.1:PORT`"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


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
    wanted = address or home.charter.addresses.flower
    host, _, port = wanted.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigurationError(f"saw the address {wanted!r}, wanted host:port; name one with --listen or --superlink")
    return SuperLink(home=home.path, host=host, port=int(port), tls=home.tls())


class _Watch:
    """Asks how a run stands, and first lets in the owners who were enrolled meanwhile.

    While the ServerApp lives, the SuperLink is asked now and then only.
    Neither an owner whose node is not let in nor a SuperLink too busy to answer ends what the others are doing.
    """

    def __init__(
        self,
        link: SuperLink,
        run: str,
        flower_keys: Callable[[], Mapping[str, str]],
        *,
        registered: set[str],
        alive: Callable[[], bool] = lambda: False,
    ) -> None:
        self._link = link
        self._run = run
        self._flower_keys = flower_keys
        self._registered = registered
        self._alive = alive
        self._failures = 0
        self._looks = 0

    def __call__(self) -> str:
        self._let_in()
        self._looks += 1
        if self._looks % LOOKS and self._alive():
            return _RUNNING
        try:
            status = self._link.status(self._run)
        except FederationError as error:
            self._failures += 1
            if self._failures >= PATIENCE:
                raise
            _log.warning("%s; asking again", error)
            return _NO_ANSWER
        self._failures = 0
        return status

    def _let_in(self) -> None:
        for name, key in self._flower_keys().items():
            if name not in self._registered:
                try:
                    self._link.register(name, key)
                except FederationError as error:
                    _log.warning("%s is enrolled, but its node is not let in yet: %s", name, error)
                else:
                    self._registered.add(name)


class _Teller:
    """Tells what is new in a run, one line per owner and step."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce
        self._told: set[str] = set()

    def __call__(self, state: RunState) -> None:
        lines = [f"{state.phase}: {owner.name} {_word(owner)}" for owner in state.owners.values()]
        for line in [f"phase {state.phase}", *lines]:
            if line not in self._told:
                self._told.add(line)
                self._announce(line)


def _word(owner: OwnerProgress) -> str:
    if owner.standing == "failed":
        return f"failed: {owner.detail}"
    return owner.job or ("not heard of yet" if owner.connected else "not connected")


class _News:
    """The whole lines that a log has gained since the last look; what is there already is old."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size if path.exists() else 0

    def __call__(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as log:
            log.seek(self._read)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        return whole.decode(errors="replace").splitlines()
