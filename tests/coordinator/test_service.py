"""The data plane as owners meet it: a real server on loopback, over TLS, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from motet.coordinator.home import CoordinatorHome
from motet.coordinator.service import serve_data_plane
from motet.protocols.contribution import Contribution
from motet.protocols.errors import FederationError, TransferRefused
from motet.protocols.receipts import Receipt
from motet.protocols.transfer import audience_of, connect, fetch, upload, withdraw

SERVE = """
import sys
from pathlib import Path
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.service import serve_data_plane
serve_data_plane(CoordinatorHome(Path(sys.argv[1])), listen=sys.argv[2], announce=lambda line: print(line, flush=True))
print("ended", "torch" in sys.modules, flush=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def process(home: CoordinatorHome, medicine: object, address: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", SERVE, str(home.path), address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == f"data plane of quickstart ready on {address}\n"
        yield started
        if started.poll() is None:
            started.kill()


@pytest.mark.slow
def test_contribute_fetch_withdraw_and_stop(
    home: CoordinatorHome,
    medicine: object,
    make_owner: Callable[[str], object],
    write_update: Callable[..., Path],
    process: "subprocess.Popen[str]",
    address: str,
    tmp_path: Path,
) -> None:
    update = write_update(tmp_path / "update.motetup")
    signed = medicine.manifest(home, update)
    audience, authority = audience_of(home.charter), home.charter.certificate_authority.encode()
    with connect(address, authority) as channel:
        fetch(channel, digest=home.charter.anchor.bundle, into=tmp_path / "anchor", key=medicine.key, audience=audience)
        assert (tmp_path / "anchor" / "model.safetensors").read_bytes() == (
            home.anchor_directory / "model.safetensors"
        ).read_bytes()
        with pytest.raises(TransferRefused) as caught:
            fetch(
                channel,
                digest=home.charter.anchor.bundle,
                into=tmp_path / "stolen",
                key=make_owner("law").key,
                audience=audience,
            )
        assert caught.value.reason == "unknown-owner"

        public = home.charter.coordinator
        sent = upload(channel, signed=signed, update=update, key=medicine.key, audience=audience, coordinator=public)
        assert sent.receipt.open(Receipt).status == "admitted"
        wrong = medicine.manifest(home, update, anchor="sha256:" + "0" * 64, version=2)
        with pytest.raises(TransferRefused) as caught:
            upload(channel, signed=wrong, update=update, key=medicine.key, audience=audience, coordinator=public)
        assert caught.value.reason == "wrong-anchor"
        gone = withdraw(
            channel,
            signed=medicine.withdrawal(home, signed.open(Contribution).digest),
            key=medicine.key,
            audience=audience,
            coordinator=public,
        )
        assert gone.open(Receipt).status == "withdrawn"
    assert [entry.kind for entry in home.ledger.entries()] == [
        "charter",
        "enrolled",
        "admitted",
        "refused",
        "withdrawn",
    ]
    os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "ended False\n"
    assert process.returncode == 0


@pytest.mark.slow
def test_ctrl_c_ends_it_quietly(process: "subprocess.Popen[str]") -> None:
    os.kill(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "ended False\n"
    assert process.returncode == 0


def test_a_port_in_use_says_what_to_do(home: CoordinatorHome) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(FederationError, match="choose another"):
            serve_data_plane(home, listen=f"127.0.0.1:{taken.getsockname()[1]}")


def test_it_ends_when_told_and_lets_go_of_the_port(home: CoordinatorHome, address: str) -> None:
    for _ in range(2):
        stop, lines = threading.Event(), []

        def announce(line: str, stop: threading.Event = stop, lines: list[str] = lines) -> None:
            lines.append(line)
            stop.set()

        serve_data_plane(CoordinatorHome(home.path), listen=address, announce=announce, stop=stop)
        assert lines == [f"data plane of quickstart ready on {address}"]
