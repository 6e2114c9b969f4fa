"""Children end with the one who started them, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from motet.protocols import processes
from motet.protocols.errors import FederationError
from motet.protocols.processes import Troupe

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
FAMILY = [
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)",
]


def troupe(folder: Path) -> Troupe:
    return Troupe(logs=folder, environment=os.environ)


def wait_for_text(path: Path) -> str:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().strip():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"nothing came in {path}")


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_leaving_the_block_ends_children_and_their_children(tmp_path: Path) -> None:
    with troupe(tmp_path) as players:
        parent = players.start("family", FAMILY)
        grandchild = int(wait_for_text(tmp_path / "family.log"))
        players.check()
        assert alive(grandchild)
    assert parent.returncode is not None
    assert not alive(grandchild)


def test_an_error_inside_the_block_ends_the_children(tmp_path: Path) -> None:
    children = []

    def play() -> None:
        with troupe(tmp_path) as players:
            children.append(players.start("sleeper", SLEEPER))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        play()
    assert children[0].returncode == -signal.SIGTERM


def test_a_kernel_that_knows_nothing_of_a_process_that_is_gone_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.pidfd_open

    def unknown(pid: int, flags: int = 0) -> int:
        if pid == os.getpid():  # psutil asks whether there is such a call at all
            return really(pid, flags)
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "pidfd_open", unknown)
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.5)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    family = [*FAMILY[:2], FAMILY[2].replace("import time; time.sleep(60)", stubborn)]
    with troupe(tmp_path) as players:
        child = players.start("family", family)
        grandchild = int(wait_for_text(tmp_path / "family.log"))
        time.sleep(0.5)  # until it ignores the signal
        players.check()
    assert not alive(child.pid)
    assert not alive(grandchild)


def test_a_child_that_ignores_the_polite_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.5)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    with troupe(tmp_path) as players:
        child = players.start("stubborn", [sys.executable, "-c", stubborn])
        wait_for_text(tmp_path / "stubborn.log")
    assert child.returncode == -signal.SIGKILL


def test_a_child_that_ends_early_is_reported_with_its_log(tmp_path: Path) -> None:
    with troupe(tmp_path) as players:
        child = players.start("broken", [sys.executable, "-c", "raise SystemExit('no charter here')"])
        child.wait()
        with pytest.raises(FederationError, match="no charter here"):
            players.check()


def test_waiting_too_long_is_an_error(tmp_path: Path) -> None:
    with troupe(tmp_path) as players:
        players.start("sleeper", SLEEPER)
        with pytest.raises(FederationError, match="longer than 0 s"):
            players.wait("sleeper", timeout=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from pathlib import Path; from motet.protocols.processes import Troupe\n"
        f"child = Troupe(logs=Path({str(tmp_path)!r}), environment=os.environ).start('s', {SLEEPER!r})\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)
