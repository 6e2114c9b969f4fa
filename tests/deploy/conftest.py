"""The hosts of the compose files, played on this machine: container paths become folders, ports free ones.

host = Host(file="owner.yml", settings={"MOTET_DIR": "/x", "MOTET_DATA": "/y"}, swaps={"/tmp": "/x/tmp"})
host.line("worker")                      # the service's very command, as it runs here
host.check("worker")                     # its health check
host.line("motet", "join", "...")        # docker compose run --rm motet join ...
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from motet.protocols.flower_home import free_port
from motet.protocols.processes import Troupe

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose"
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def load(name: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """The services of a compose file, merge keys and ${VARIABLES} resolved as Compose does."""

    def resolve(match: re.Match[str]) -> str:
        variable, kind, text = match.groups()
        if settings.get(variable):
            return settings[variable]
        if kind == "-":
            return text
        raise KeyError(f"{variable} is not set: {text}")

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return _VARIABLE.sub(resolve, value)
        if isinstance(value, list):
            return [walk(each) for each in value]
        return {key: walk(each) for key, each in value.items()} if isinstance(value, dict) else value

    return walk(yaml.safe_load((COMPOSE / name).read_text(encoding="utf-8")))["services"]


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine of a federation."""

    file: str
    settings: Mapping[str, str]
    swaps: Mapping[str, str]
    """What stands in a container -> what it is here: folders that no volume names, and addresses."""

    def services(self) -> dict[str, dict[str, Any]]:
        """Every service as the file has it."""
        return load(self.file, self.settings)

    def service(self, name: str) -> dict[str, Any]:
        """One of them."""
        return self.services()[name]

    def mounts(self, name: str) -> dict[str, tuple[str, bool]]:
        """Container path -> (host path, read only)."""
        found = {}
        for volume in self.service(name).get("volumes", []):
            if isinstance(volume, str):
                source, target, *mode = volume.split(":")
                found[target] = (source, mode == ["ro"])
            else:
                found[volume["target"]] = (volume["source"], volume.get("read_only", False))
        return found

    def here(self, name: str, text: str) -> str:
        """Words of a service, its paths and addresses replaced in one pass."""
        places = {target: str((COMPOSE / source).resolve()) for target, (source, _) in self.mounts(name).items()}
        known = {"/opt/motet": str(COMPOSE)} | places | dict(self.swaps)
        pattern = "|".join(re.escape(word) for word in sorted(known, key=len, reverse=True))
        return re.sub(rf"(?<![\w.])(?:{pattern})(?![\w-])", lambda match: known[match.group()], text)

    def line(self, name: str, *arguments: str) -> list[str]:
        """Entry point and command of a service, or the entry point with other arguments."""
        service = self.service(name)
        return self._here(name, [*service.get("entrypoint", []), *(arguments or service.get("command", []))])

    def check(self, name: str) -> list[str]:
        """The health check of a service."""
        kind, *line = self.service(name)["healthcheck"]["test"]
        assert kind == "CMD"
        return self._here(name, line)

    def environment(self, name: str) -> dict[str, str]:
        """A service's environment over this process's, which lends PATH and nothing of Flower's."""
        mine = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "MOTET_"))}
        theirs = self.service(name).get("environment", {})
        return mine | {"OMP_NUM_THREADS": "1"} | {key: self.here(name, value) for key, value in theirs.items()}

    def _here(self, name: str, line: list[str]) -> list[str]:
        command, *arguments = line
        # Started by root, nginx would change its user, and not reach this user's folders; in a container it is no root.
        same_user = ["-g", "user root;"] if command == "nginx" and os.geteuid() == 0 else []
        return [_executable(command), *(self.here(name, argument) for argument in arguments), *same_user]


def _executable(name: str) -> str:
    """A command of the image as installed here: Python's beside the interpreter, others on PATH or in sbin."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"saw no command {name}, which a compose file uses: apt-get install nginx-light curl")
    assert found, f"saw no command {name}, which a compose file uses; .ci/run installs it"
    return found


@dataclass(kw_only=True)
class Federation:
    """A coordinator's host and an owner's, their processes running, and what was seen of them."""

    directory: Path
    coordinator: Host
    owner: Host
    proxy: str
    superlink: str
    troupe: Troupe
    healthy_before: dict[str, bool] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The coordinator's home."""
        return self.directory / "coordinator" / "federation"

    def tool(self, host: Host, *arguments: str) -> dict[str, Any]:
        """The JSON that a command of the service `motet` prints."""
        line = host.line("motet", *arguments, "--json")
        done = subprocess.run(line, env=host.environment("motet"), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, host: Host, name: str, *, may_end: bool = False) -> None:
        """Start a service, as `docker compose up NAME` would."""
        self.troupe.start(name, host.line(name), environment=host.environment(name), may_end=may_end)

    def healthy(self, host: Host, name: str) -> bool:
        """What the service's health check says."""
        return not subprocess.run(
            host.check(name), env=host.environment(name), capture_output=True, check=False
        ).returncode

    def wait_healthy(self, host: Host, name: str, seconds: float = 60.0) -> None:
        """Wait as `depends_on: {condition: service_healthy}` does."""
        deadline = time.monotonic() + seconds
        while not self.healthy(host, name):
            self.troupe.check()
            assert time.monotonic() < deadline, f"{name} is not healthy after {seconds:.0f} s"


@pytest.fixture(scope="session")
def hosts() -> dict[str, Host]:
    """Both compose files with default settings."""
    owner = {"MOTET_DATA": "/srv/text"}
    return {
        "coordinator.yml": Host(file="coordinator.yml", settings={}, swaps={}),
        "owner.yml": Host(file="owner.yml", settings=owner, swaps={}),
    }


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """One run, from `motet init` to its end, by the compose files' own commands; the servers still run."""
    directory = tmp_path_factory.mktemp("hosts")
    ports = {name: f"127.0.0.1:{free_port()}" for name in ("proxy", "superlink", "data-plane")}
    with Troupe(logs=directory / "logs") as troupe:
        built = Federation(
            directory=directory,
            coordinator=_coordinator(directory, ports),
            owner=_owner(directory),
            proxy=ports["proxy"],
            superlink=ports["superlink"],
            troupe=troupe,
        )
        _found(built, ports)
        _run(built)
        yield built


def _coordinator(directory: Path, ports: Mapping[str, str]) -> Host:
    rendered, scratch = directory / "nginx.conf", directory / "coordinator-tmp"
    scratch.mkdir()
    swaps = {
        "/tmp": str(scratch),
        "/etc/nginx/nginx.conf": str(rendered),
        "listen 8443": f"listen {ports['proxy']}",
        "127.0.0.1:8443": ports["proxy"],
        "127.0.0.1:8000": ports["superlink"],
        "0.0.0.0:9443": ports["data-plane"],
        "127.0.0.1:9443": ports["data-plane"],
    }
    settings = {"MOTET_DIR": str(directory / "coordinator")}
    host = Host(file="coordinator.yml", settings=settings, swaps=swaps)
    rendered.write_text(host.here("proxy", (COMPOSE / "nginx.conf").read_text()))
    return host


def _owner(directory: Path) -> Host:
    scratch = directory / "owner-tmp"
    scratch.mkdir()
    settings = {"MOTET_DIR": str(directory / "owner"), "MOTET_DATA": str(directory / "text")}
    return Host(file="owner.yml", settings=settings, swaps={"/tmp": str(scratch)})


def _found(built: Federation, ports: Mapping[str, str]) -> None:
    """What the README has people type, and hand to each other, before the first `up`."""
    quickstart, coordinator, owner = COMPOSE.parents[1] / "examples" / "quickstart", built.directory, built.directory
    shutil.copytree(quickstart / "anchor", coordinator / "coordinator" / "anchor")
    _head(quickstart / "text" / "public.jsonl", coordinator / "coordinator" / "public.jsonl", 60)
    _head(quickstart / "text" / "medicine.jsonl", owner / "text" / "medicine.jsonl", 60)
    texts = ["--anchor=/motet/anchor", "--public-text=/motet/public.jsonl"]
    addresses = [f"--flower={ports['proxy']}", f"--data-plane={ports['data-plane']}"]
    built.tool(built.coordinator, "init", "/motet/federation", "--name=clinics", *texts, *addresses)
    (owner / "owner").mkdir()
    shutil.copy(built.home / "charter.signed.json", owner / "owner")
    named = ["--name=medicine", "--data=/data/*.jsonl", "--licence=CC0-1.0", "--yes"]
    through_the_proxy = ("contribution.consent=automatic", "contribution.transport=flower")
    options = [f"--set={each}" for each in ("training.steps=3", "training.sequence_length=64", *through_the_proxy)]
    built.tool(built.owner, "join", "/motet/charter.signed.json", "--dir=/motet/owner", *named, *options)
    shutil.copy(owner / "owner" / "owner" / "join-request.json", coordinator / "coordinator")
    built.tool(built.coordinator, "admit", "/motet/join-request.json", "--dir=/motet/federation")


def _head(source: Path, target: Path, lines: int) -> None:
    target.parent.mkdir(exist_ok=True)
    target.write_text("".join(source.read_text().splitlines(keepends=True)[:lines]))


def _run(built: Federation) -> None:
    servers, clients = ("superlink", "proxy", "data-plane"), ("supernode", "worker")
    for host, names in ((built.coordinator, servers), (built.owner, clients)):
        built.healthy_before |= {name: built.healthy(host, name) for name in names}
        for name in names:
            built.start(host, name)
    for name in servers:
        built.wait_healthy(built.coordinator, name)
    built.start(built.coordinator, "run", may_end=True)
    deadline = time.monotonic() + 300
    while built.troupe.running("run"):
        built.troupe.check()
        assert time.monotonic() < deadline, "the run takes longer than 300 s"
        time.sleep(0.2)
    built.troupe.wait("run", timeout=1)
    built.state = json.loads((built.home / "run" / "state.json").read_bytes())
