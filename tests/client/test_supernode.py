"""The SuperNode's command line, and the loop that keeps it running."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from motet.client.supernode import SuperNode
from motet.protocols.flower_home import COMMANDS, flower_environment

SUPERVISOR = """
import os, sys
from motet.client.supernode import supervise
child = "import os, subprocess, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\\\n'); time.sleep(60)"
raise SystemExit(supervise(lambda: [sys.executable, "-c", child, sys.argv[1]], os.environ))
"""


def test_every_argument_belongs_to_the_home(tmp_path: Path) -> None:
    home = tmp_path / "an owner's home"
    node = SuperNode(
        home=home, owner="ed25519:" + "0" * 64, key=home / "k", superlink="host:1", authority=home / "ca.pem"
    )
    command, environment = node.command(), node.environment({"PATH": "/usr/bin", "LANG": "C"})
    assert Path(command[0]).is_file()
    assert f'motet-home="{home}" motet-owner="ed25519:' in command[command.index("--node-config") + 1]
    assert environment["PATH"] == f"{home}/flower/bin{os.pathsep}/usr/bin"
    assert (environment["LANG"], environment["FLWR_TELEMETRY_ENABLED"]) == ("C", "0")
    assert "--insecure" not in command


def test_links_follow_an_environment_that_moved(tmp_path: Path) -> None:
    flower_environment(tmp_path)
    link = tmp_path / "flower" / "bin" / COMMANDS[0]
    right = link.readlink()
    link.unlink()
    link.symlink_to("/nowhere")
    flower_environment(tmp_path)
    assert link.readlink() == right


def pids(path: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = path.read_text().split() if path.exists() else []
        if len(found) >= count:
            return [int(pid) for pid in found]
        time.sleep(0.05)
    raise AssertionError(f"saw fewer than {count} starts")


def test_a_superlink_is_reachable_once_its_port_answers(tmp_path: Path) -> None:
    def reachable(superlink: str) -> bool:
        key, authority = tmp_path / "k", tmp_path / "ca.pem"
        return SuperNode(home=tmp_path, owner="o", key=key, superlink=superlink, authority=authority).reachable()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert reachable(f"127.0.0.1:{port}")
    assert not reachable(f"127.0.0.1:{port}")
    assert not reachable("nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("comes", [True, False])
def test_a_node_is_started_once_the_superlink_is_there_and_a_signal_ends_the_wait(tmp_path: Path, comes: bool) -> None:
    starts, asked, there = tmp_path / "pids", tmp_path / "asked", tmp_path / "there"
    ready = "lambda: open(sys.argv[2], 'a').close() or os.path.exists(sys.argv[3])"
    waiting = SUPERVISOR.replace("os.environ))", f"os.environ, ready={ready}))")
    supervisor = subprocess.Popen([sys.executable, "-c", waiting, str(starts), str(asked), str(there)])
    try:
        deadline = time.monotonic() + 20
        while not asked.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not starts.exists()
        if comes:
            there.touch()
            pids(starts, 1)
        supervisor.terminate()
        assert supervisor.wait(15) == 0
        assert starts.exists() is comes
    finally:
        supervisor.kill()
        supervisor.wait()


@pytest.mark.slow
def test_a_killed_node_is_started_again_and_a_signal_ends_both(tmp_path: Path) -> None:
    starts = tmp_path / "pids"
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(starts)])
    try:
        os.kill(pids(starts, 1)[0], signal.SIGKILL)
        second = pids(starts, 2)[1]
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(15) == 0
        assert not psutil.pid_exists(second)
        assert len(pids(starts, 2)) == 2
    finally:
        supervisor.kill()
        supervisor.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_node_ends_with_a_killed_supervisor(tmp_path: Path) -> None:
    starts = tmp_path / "pids"
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(starts)])
    (node,) = pids(starts, 1)
    supervisor.kill()
    supervisor.wait()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(node) and psutil.Process(node).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
