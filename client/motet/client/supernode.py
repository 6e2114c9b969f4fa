"""The owner's SuperNode: how it is started, and kept running.

    node = SuperNode.of(OwnerHome.load(Path("owner")))
    raise SystemExit(supervise(node.command, node.environment(), ready=node.reachable))

It is started once the SuperLink's port answers: trying in vain would cost seconds of CPU, and a back-off of its own.
A SuperNode that was killed cannot come back at once: until its last heartbeat runs out, about a minute, the SuperLink
refuses the same key and the process exits (Flower's code 305). So it is restarted with a back-off, for ever; SIGTERM
and SIGINT are passed on and end both.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

from motet.client.owner import OwnerHome
from motet.protocols.canonical import write_atomically
from motet.protocols.flower_home import flower_environment, free_port
from motet.protocols.processes import end_with_parent

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 8.0
STEADY_SECONDS = 30.0
"""A process that lived so long starts over with the shortest pause."""
READY_SECONDS = 60.0
"""It is started after so long whatever the port says: a way through a web proxy cannot be tried from here."""
GRACE_SECONDS = 8.0
"""How long a process may take to end after it was asked to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuperNode:
    """One owner's `flower-supernode`."""

    home: Path
    owner: str
    """The owner's public key."""
    key: Path
    """The P-384 private key (OpenSSH) that authenticates the node."""
    superlink: str
    """host:port of the SuperLink's Fleet API, or of the proxy in front of it."""
    authority: Path
    """PEM file of the CA that the SuperLink's certificate chains to."""

    @classmethod
    def of(cls, home: OwnerHome, superlink: str | None = None) -> Self:
        """The node of a home, under the charter that the owner joined; `superlink` stands in for its address."""
        authority = home.path / "flower" / "ca.pem"
        write_atomically(authority, home.charter.certificate_authority.encode())
        return cls(
            home=home.path.absolute(),
            owner=home.key.public,
            key=home.flower_key.absolute(),
            superlink=superlink or home.charter.addresses.flower,
            authority=authority.absolute(),
        )

    def command(self) -> list[str]:
        """The command line; its own runtime API gets a port of the loopback that is free now."""
        settings = {"motet-home": str(self.home), "motet-owner": self.owner}
        return [
            str(self.home / "flower" / "bin" / "flower-supernode"),
            *("--superlink", self.superlink),
            *("--root-certificates", str(self.authority)),
            *("--auth-supernode-private-key", str(self.key)),
            *("--host", "127.0.0.1", "--port", str(free_port())),
            *("--node-config", " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())),
        ]

    def reachable(self) -> bool:
        """Whether the SuperLink's port answers."""
        host, _, port = self.superlink.rpartition(":")
        with suppress(OSError, ValueError), socket.create_connection((host.strip("[]"), int(port)), timeout=1.0):
            return True
        return False

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment to start it in."""
        return flower_environment(self.home, base)


def supervise(
    command: Callable[[], Sequence[str]], environment: Mapping[str, str], *, ready: Callable[[], bool] = lambda: True
) -> int:
    """Run a command, start it again whenever it ends, and end it on SIGTERM or SIGINT; call from the main thread.

    Args:
        command: makes the command line anew for every start.
        environment: for the command.
        ready: whether to start it now; it is waited for up to `READY_SECONDS` before every start.

    Returns:
        0, once a signal has ended it.
    """
    wishes: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        wishes.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    pause = FIRST_PAUSE_SECONDS
    try:
        while not wishes:
            _await(ready, wishes)
            started = time.monotonic()
            code = _run_once(command(), environment, wishes)
            if wishes:
                break
            pause = FIRST_PAUSE_SECONDS if time.monotonic() - started > STEADY_SECONDS else pause
            logger.warning("the SuperNode ended with code %s; starting it again in %.0f s", code, pause)
            _sleep(pause, wishes)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _run_once(command: Sequence[str], environment: Mapping[str, str], wishes: list[int]) -> int:
    child = subprocess.Popen(  # noqa: S603 - our own command
        command, env=dict(environment), stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent
    )
    try:
        while child.poll() is None and not wishes:
            time.sleep(0.1)
        if child.poll() is None:
            _signal_group(child, wishes[0])
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_SECONDS)
    finally:
        _signal_group(child, signal.SIGKILL)  # its SuperExec and ClientApp too, whoever ended it
        child.wait()
    return child.returncode


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _await(ready: Callable[[], bool], wishes: list[int]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not wishes and time.monotonic() < deadline and not ready():
        _sleep(0.3, wishes)


def _sleep(seconds: float, wishes: list[int]) -> None:
    deadline = time.monotonic() + seconds
    while not wishes and time.monotonic() < deadline:
        time.sleep(0.1)
