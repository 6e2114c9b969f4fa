"""The surroundings that every Flower process of a home runs in.

    environment = flower_environment(home)
    subprocess.Popen([home / "flower/bin/flower-supernode", ...], env=environment)

Telemetry and update checks are off, and Flower keeps its files in `home/flower`. Flower's processes start each other
by name, so `home/flower/bin` links to the installed commands and leads PATH: they are found without an activated
environment, and the command line of each names the home that it belongs to.
"""

import os
import shutil
import socket
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from motet.protocols.canonical import storage_errors
from motet.protocols.errors import FederationError

COMMANDS = ("flower-superlink", "flower-supernode", "flower-superexec", "flwr", "flwr-serverapp", "flwr-clientapp")


def flower_environment(home: Path, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for Flower's processes; makes `home/flower` and the links in it.

    Args:
        home: of an owner or of a coordinator.
        base: what to add to; None is this process's environment.

    Raises:
        FederationError: Flower is not installed.
    """
    surroundings = dict(os.environ if base is None else base)
    commands = _link_commands(home / "flower" / "bin")
    return surroundings | {
        "PATH": f"{commands}{os.pathsep}{surroundings.get('PATH', os.defpath)}",
        "FLWR_HOME": str(home / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        "PYTHONUNBUFFERED": "1",
    }


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listened on a moment ago."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _link_commands(directory: Path) -> Path:
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for name in COMMANDS:
            link, target = directory / name, _installed(name)
            if not link.is_symlink() or link.readlink() != target:
                link.unlink(missing_ok=True)
                link.symlink_to(target)
    return directory


def _installed(name: str) -> Path:
    """The command as installed beside this interpreter, else on PATH."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if (folder / name).exists():
            return folder / name
    found = shutil.which(name)
    if found is None:
        raise FederationError(
            f"saw no command {name}; install Flower with `pip install motet[client]` or `motet[coordinator]`"
        )
    return Path(found).absolute()
