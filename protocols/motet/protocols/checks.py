"""What `motet doctor` looks at: each check is a value that says what was seen and what to do next.

for check in examine(Path("owner")):
    print(check.status, check.name, check.message)
"""

import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from motet.protocols.charter import Charter
from motet.protocols.errors import MotetError
from motet.protocols.signing import Signed

_SHOWN = ("motet", "torch", "transformers", "flwr", "safetensors", "grpcio", "datasets", "accelerate")
_LOW_DISK_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    status: Literal["ok", "warn", "fail"]
    message: str

    def as_json(self) -> dict[str, str]:
        """The check as a JSON object."""
        return asdict(self)


def versions() -> dict[str, str | None]:
    """Package -> installed version, None where it is not installed."""
    return {"python": sys.version.split()[0]} | {name: _version(name) for name in _SHOWN}


def examine(directory: Path) -> list[Check]:
    """Every check that applies to this machine and to the home at `directory`, if it is one."""
    return [*_machine(directory), *_home(directory)]


def _version(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def _machine(directory: Path) -> Iterator[Check]:
    fine = sys.version_info >= (3, 11)
    yield Check(
        name="python", status="ok" if fine else "fail", message=f"{sys.version.split()[0]}, wanted 3.11 or newer"
    )
    yield from _requirements()
    free = shutil.disk_usage(directory if directory.exists() else Path()).free
    yield Check(
        name="disk",
        status="ok" if free > _LOW_DISK_BYTES else "warn",
        message=f"{free / (1 << 30):.1f} GiB free at {directory.resolve()}",
    )
    yield _device()


def _requirements() -> Iterator[Check]:
    for line in distribution("motet").requires or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = _version(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            message = f"saw {found or 'none'}, wanted {wanted.specifier}; install again with constraints.txt"
            yield Check(name=wanted.name, status="fail", message=message)


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check(
            name="device", status="ok", message=f"{torch.cuda.device_count()} GPU(s), {torch.cuda.get_device_name()}"
        )
    return Check(name="device", status="ok", message=f"no GPU, CPU with {torch.get_num_threads()} threads")


def _home(directory: Path) -> Iterator[Check]:
    charter_file = directory / "charter.signed.json"
    if not charter_file.exists():
        message = f"{directory.resolve()} is no owner's or coordinator's home; name one with --dir"
        yield Check(name="home", status="warn", message=message)
        return
    try:
        signed = Signed.parse(charter_file.read_bytes())
        charter = signed.open(Charter)
    except MotetError as error:
        yield Check(name="charter", status="fail", message=f"{error}; fetch it again from the coordinator")
        return
    agrees = signed.key == charter.coordinator
    yield Check(
        name="charter",
        status="ok" if agrees else "fail",
        message=f"{charter.name}, {charter.digest}"
        if agrees
        else f"signed by {signed.key}, wanted {charter.coordinator}",
    )
    yield from _keys(directory / "keys")
    yield _reachable("data plane", charter.addresses.data_plane)
    yield _reachable("flower", charter.addresses.flower)


def _keys(directory: Path) -> Iterator[Check]:
    for path in sorted(directory.glob("*")):
        if path.suffix == ".pub" or not path.is_file():
            continue
        open_to_others = stat.S_IMODE(path.stat().st_mode) & 0o077
        yield Check(
            name=f"key {path.name}",
            status="fail" if open_to_others else "ok",
            message=f"others may read it; run chmod 600 {path}" if open_to_others else "readable by its owner only",
        )


def _reachable(name: str, address: str) -> Check:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return Check(name=name, status="ok", message=f"{address} answers")
    except OSError as error:
        return Check(
            name=name, status="warn", message=f"{address} does not answer ({error}); is the coordinator running?"
        )
