"""The coordinator's SuperLink: how it is started, told its nodes, and given a run.

    link = SuperLink(home=home, port=8000, tls=tls_files)
    process = subprocess.Popen(link.command(), env=link.environment())
    link.wait_until_ready(process.poll)
    link.register("medicine", join_request.flower_key)
    run = link.submit({"min-owners": 3})
    link.status(run)                            # "running" … "finished:completed"

TLS and node authentication are always on, and it listens on the loopback unless told otherwise: whoever reaches the
port can also start runs, so other hosts come in through a proxy that exposes `/v1/fleet/` only.
"""

import json
import logging
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w

from motet.coordinator.tls import TlsFiles
from motet.protocols.canonical import write_atomically
from motet.protocols.errors import FederationError
from motet.protocols.flower_home import flower_environment

logger = logging.getLogger(__name__)

APP_DIRECTORY = Path(str(files("motet.coordinator") / "flower_app"))
"""The thin Flower app."""

_CONNECTION = "motet"
_ALREADY_REGISTERED = "already in use"
_COMMAND_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SuperLink:
    """One coordinator's `flower-superlink`."""

    home: Path
    port: int
    tls: TlsFiles
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        """host:port, as the owners' nodes on this machine and the `flwr` command reach it."""
        return f"{self._reached}:{self.port}"

    @property
    def _reached(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104

    def command(self) -> list[str]:
        """The command line; registrations and runs are kept in `home/flower/superlink.db`."""
        return [
            str(self.home / "flower" / "bin" / "flower-superlink"),
            *("--host", self.host, "--port", str(self.port)),
            *("--ssl-certfile", str(self.tls.server), "--ssl-keyfile", str(self.tls.server_key)),
            *("--ssl-ca-certfile", str(self.tls.authority)),
            *("--database", str(self.home / "flower" / "superlink.db")),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        ]

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment for the SuperLink and for `flwr`; writes the connection that `flwr` uses."""
        surroundings = flower_environment(self.home, base)
        connection = {"address": self.address, "root-certificates": str(self.tls.authority)}
        config = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        write_atomically(self.home / "flower" / "config.toml", tomli_w.dumps(config).encode())
        return surroundings

    def wait_until_ready(self, ended: Callable[[], int | None], timeout: float = 60.0) -> None:
        """Wait until the port answers.

        Args:
            ended: the SuperLink's exit code, None while it runs (`Popen.poll`).
            timeout: seconds.

        Raises:
            FederationError: it ended, or does not answer in time.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if (code := ended()) is not None:
                raise FederationError(
                    f"the SuperLink ended with code {code}; its log says why, often that port {self.port} is in use"
                )
            with suppress(OSError), socket.create_connection((self._reached, self.port), timeout=1.0):
                return
            time.sleep(0.05)
        raise FederationError(f"the SuperLink does not answer on {self.address} after {timeout:.0f} s; see its log")

    def register(self, name: str, flower_key: str, base: Mapping[str, str] | None = None) -> None:
        """Let the node with this public key (OpenSSH line) in; a key that is in already is fine.

        Raises:
            FederationError: the SuperLink refuses the key.
        """
        path = self.home / "flower" / "nodes" / f"{name}.pub"
        write_atomically(path, flower_key.strip().encode() + b"\n")
        answer = self._flwr(["supernode", "register", str(path), _CONNECTION, "--name", name], base)
        if not answer.get("success") and _ALREADY_REGISTERED not in _message(answer):
            raise FederationError(f"the SuperLink did not register {name}: {_message(answer)}")

    def register_all(self, flower_keys: Mapping[str, str], base: Mapping[str, str] | None = None) -> None:
        """Register several nodes (name -> OpenSSH line), two at a time: each call starts a process."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: self.register(name, flower_keys[name], base), flower_keys))

    def submit(
        self,
        settings: Mapping[str, str | int | float],
        base: Mapping[str, str] | None = None,
        app: Path = APP_DIRECTORY,
    ) -> str:
        """Start a run.

        Args:
            settings: over the defaults in the app's `[tool.flwr.app.config]`; `motet-home` is set here.
            base: the environment to add to.
            app: the directory of the Flower app.

        Returns:
            The run's id.

        Raises:
            FederationError: the SuperLink refuses.
        """
        values = {"motet-home": str(self.home), **settings}
        config = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
        answer = self._flwr(["run", str(app), _CONNECTION, "--run-config", config], base)
        if not answer.get("success"):
            raise FederationError(f"the SuperLink did not start the run: {_message(answer)}")
        return str(answer["run-id"])

    def status(self, run: str, base: Mapping[str, str] | None = None) -> str:
        """Where a run stands, in Flower's words: "pending", "starting", "running", "finished:completed", ….

        Raises:
            FederationError: there is no such run, or the SuperLink does not answer.
        """
        answer = self._flwr(["list", _CONNECTION, "--run-id", run], base)
        if not answer.get("success") or not answer.get("runs"):
            raise FederationError(f"the SuperLink does not know the run {run}: {_message(answer)}")
        return str(answer["runs"][0]["status"])

    def stop(self, run: str, base: Mapping[str, str] | None = None) -> None:
        """Stop a run; its state on disk lets the next one continue."""
        self._flwr(["stop", run, _CONNECTION], base)

    def _flwr(self, arguments: list[str], base: Mapping[str, str] | None) -> dict[str, Any]:
        """One `flwr` call. It exits with 0 even when it fails, so the JSON that it prints is what counts."""
        command = [str(self.home / "flower" / "bin" / "flwr"), *arguments, "--format", "json"]
        try:
            done = subprocess.run(  # noqa: S603 - our own command
                command,
                env=self.environment(base),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS,
                check=False,
            )
            answer = json.loads(done.stdout[done.stdout.find("{") :] or "null")
        except subprocess.TimeoutExpired as error:
            raise FederationError(f"`flwr {arguments[0]}` took longer than {_COMMAND_SECONDS:.0f} s") from error
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise FederationError(
                f"`flwr {' '.join(arguments[:2])}` ended with code {done.returncode} and said: "
                f"{(done.stderr or done.stdout).strip()[-500:]}; is the SuperLink up on {self.address}?"
            )
        return answer


def _message(answer: Mapping[str, Any]) -> str:
    return str(answer.get("error-message", "it gave no reason")).strip()
