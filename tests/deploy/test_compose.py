"""The compose files: what they promise, and the federation that their very commands make on this machine."""

import http.client
import re
import shlex
import socket
import ssl
import tomllib
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
import yaml

from motet import cli
from motet.coordinator.tls import ensure_tls

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ("coordinator.yml", "owner.yml")
SERVERS = {"coordinator.yml": {"pod", "superlink", "proxy", "data-plane"}, "owner.yml": {"supernode", "worker"}}
REQUEST = {"content-type": "application/protobuf", "accept": "application/protobuf"}


def understood(arguments: list[str]) -> bool:
    """Whether the real command line takes these words; nothing is run."""
    group: Any = typer.main.get_command(cli.build())
    if arguments == ["--help"]:
        return True
    command = group.commands[arguments[0]]
    return bool(command.make_context(arguments[0], list(arguments[1:])).command)


@pytest.mark.parametrize("file", FILES)
def test_every_service_is_confined(hosts: Any, file: str) -> None:
    for name, service in hosts[file].services().items():
        assert not service["user"].startswith(("0", "root")), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "pid", "ipc", "secrets", "env_file"} & set(service), name


@pytest.mark.parametrize("file", FILES)
def test_servers_come_back_and_are_looked_after(hosts: Any, file: str) -> None:
    services = hosts[file].services()
    assert {name for name, each in services.items() if each["restart"] == "unless-stopped"} == SERVERS[file]
    assert {name for name, each in services.items() if "healthcheck" in each} == SERVERS[file] - {"pod"}
    assert {name for name, each in services.items() if "profiles" in each} == set(services) - SERVERS[file]


def test_the_superlink_stays_on_the_loopback_that_it_shares_with_proxy_and_run(hosts: Any) -> None:
    services = hosts["coordinator.yml"].services()
    line = services["superlink"]["command"]
    assert line[line.index("--listen") + 1].startswith("127.0.0.1:")
    sharing = {name for name, each in services.items() if each.get("network_mode") == "service:pod"}
    assert sharing == {"superlink", "proxy", "run"}
    published = {name: each["ports"] for name, each in services.items() if "ports" in each}
    assert published == {"pod": ["9092:8443"], "data-plane": ["9443:9443"]}
    assert not any("ports" in each for each in hosts["owner.yml"].services().values())


def test_nobody_sees_more_files_than_needed(hosts: Any) -> None:
    proxy = hosts["coordinator.yml"].mounts("proxy")
    assert set(proxy) == {"/etc/nginx/nginx.conf", "/tls/ca.pem", "/tls/server.pem", "/tls/server-key.pem"}
    assert all(read_only for _, read_only in proxy.values())
    assert hosts["coordinator.yml"].mounts("pod") == {}
    assert set(hosts["owner.yml"].mounts("supernode")) == {"/motet"}
    assert hosts["owner.yml"].mounts("worker")["/data"] == ("/srv/text", True)


def test_the_gpu_goes_to_the_worker_and_to_commands(hosts: Any) -> None:
    added = yaml.safe_load((DEPLOY / "compose" / "owner.gpu.yml").read_text())["services"]
    assert set(added) == {"worker", "motet"} <= set(hosts["owner.yml"].services())
    for service in added.values():
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


@pytest.mark.parametrize("file", FILES)
def test_the_command_line_takes_what_services_run(hosts: Any, file: str) -> None:
    lines = [[*each.get("entrypoint", []), *each.get("command", [])] for each in hosts[file].services().values()]
    ours = [arguments for program, *arguments in lines if program == "motet"]
    assert len(ours) == {"coordinator.yml": 4, "owner.yml": 3}[file]
    assert all(understood(arguments) for arguments in ours)


def test_the_command_line_takes_what_the_walk_has_people_type() -> None:
    text = (DEPLOY / "README.md").read_text().replace("\\\n", " ")
    typed = re.findall(r"^\$ (?:coordinator|owner) run --rm motet (.+)$", text, re.MULTILINE)
    lines = [shlex.split(line, comments=True) for line in typed]
    assert {"init", "admit", "assemble", "report", "join", "contribute", "withdraw"} <= {line[0] for line in lines}
    assert all(understood(line) for line in lines)


def test_the_image_holds_every_file_that_the_wheel_is_built_from() -> None:
    recipe = (DEPLOY / "compose" / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (?!--)(.+) \S+$", recipe, re.MULTILINE) for word in line.split()}
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    needed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert {path.removesuffix("/motet") for path in needed} <= copied
    assert {"pyproject.toml", "README.md", "LICENSE", "constraints.txt"} <= copied
    ignored = (DEPLOY / "compose" / "Dockerfile.dockerignore").read_text().split()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((DEPLOY.parent / path).exists() for path in copied)


def ask(
    address: str, path: str, trust: Path, *, method: str = "POST", body: bytes = b"", announced: int | None = None
) -> int:
    """The status of one call over TLS; the path is sent as it is, the length as `announced`."""
    connection = http.client.HTTPSConnection(address, timeout=10, context=ssl.create_default_context(cafile=trust))
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {**REQUEST, "content-length": str(len(body) if announced is None else announced)}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.slow
def test_a_run_goes_through_the_proxy_to_its_end(federation: Any) -> None:
    [owner] = federation.state["owners"].values()
    assert federation.state["phase"] == "done"
    assert owner["name"] == "medicine"
    assert (federation.home / "composites").exists()
    report = federation.tool(federation.coordinator, "report", "--dir=/motet/federation")
    assert set(report["bits_per_byte"]["composite"]) == {"public", "medicine"}
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    home = str(federation.directory / "owner" / "owner" / "flower" / "bin" / "flower-supernode")
    node = next(line for line in lines if home in line)
    assert node[node.index("--superlink") + 1] == federation.proxy


@pytest.mark.slow
def test_health_checks_tell_the_living_from_the_missing(federation: Any) -> None:
    assert federation.healthy_before == dict.fromkeys(
        ("superlink", "proxy", "data-plane", "supernode", "worker"), False
    )
    for host, names in (
        (federation.coordinator, ("superlink", "proxy", "data-plane")),
        (federation.owner, ("supernode", "worker")),
    ):
        assert [name for name in names if not federation.healthy(host, name)] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/get-nodes"])
def test_the_proxy_hides_what_the_superlink_answers(federation: Any, path: str) -> None:
    trust = federation.home / "tls" / "ca.pem"
    assert ask(federation.superlink, path, trust) != 404
    assert ask(federation.proxy, path, trust) == 404


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/docs",
        "/openapi.json",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol%2flist-runs",
        "/v1//control/list-runs",
        "/v1/control/list-runs?/../../fleet/get-run",
        "/v1/control/list-runs#/../../fleet/get-run",
        "/v1/fleet/get-run%0a",
        "/v1/fleet/get-run%20HTTP/1.1",
        "/V1/FLEET/GET-RUN",
    ],
)
def test_no_detour_leads_through_the_proxy(federation: Any, path: str) -> None:
    assert ask(federation.proxy, path, federation.home / "tls" / "ca.pem") == 404


@pytest.mark.slow
def test_a_detour_back_to_the_fleet_is_straightened(federation: Any) -> None:
    """What the SuperLink gets is the path that the proxy judged, so it asks for the node's signature."""
    trust = federation.home / "tls" / "ca.pem"
    assert ask(federation.proxy, "/v1/control/%2e%2e/fleet/get-run", trust) == 401


@pytest.mark.slow
def test_the_fleet_is_for_nodes_that_sign(federation: Any, tmp_path: Path) -> None:
    trust = federation.home / "tls" / "ca.pem"
    assert ask(federation.proxy, "/v1/fleet/pull-messages", trust) == 401
    assert ask(federation.proxy, "/v1/fleet/pull-messages", trust, method="GET") == 404
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(federation.proxy, "/v1/fleet/pull-messages", ensure_tls(tmp_path, []).authority)


@pytest.mark.slow
def test_the_largest_object_passes_and_a_larger_body_does_not(federation: Any) -> None:
    trust = federation.home / "tls" / "ca.pem"
    assert ask(federation.proxy, "/v1/fleet/push-object", trust, body=bytes(6 << 20)) not in {404, 413}
    assert ask(federation.proxy, "/v1/fleet/push-object", trust, announced=17 << 20) == 413


@pytest.mark.slow
def test_the_proxy_speaks_to_nobody_without_tls(federation: Any) -> None:
    host, port = federation.proxy.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        plain.sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert b" 400 " in plain.recv(64)
