"""The owner's two processes under one command: they begin together, and end together."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from motet.cli import run
from motet.client import operations
from motet.client.spool import Spool
from motet.protocols.control import TrainRequest
from motet.protocols.errors import ConfigurationError, FederationError, WorkerBusy


def test_a_worker_that_runs_once_ends_with_the_queue(make_home, coordinator) -> None:
    home, told = make_home(), list[str]()
    job = Spool(home.path).submit("train", TrainRequest(charter=home.charter.digest)).id
    operations.run_worker(home.path, once=True, announce=told.append)
    assert Spool(home.path).job(job).state.state == "done"
    assert str(home.path) in told[0]


def test_a_worker_that_runs_once_ends_in_error_when_a_job_failed(make_home, capsys) -> None:
    home = make_home()
    (home.path / "own.jsonl").unlink()
    job = Spool(home.path).submit("train", TrainRequest(charter=home.charter.digest)).id
    command = ["work", "worker", "--once", "--dir", str(home.path)]
    assert run(command) == FederationError.exit_code
    assert f"saw {job} fail" in capsys.readouterr().err
    assert Spool(home.path).job(job).state.state == "failed"
    assert run(command) == 0  # an earlier call's is none of this one's


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run `python -c program` in place of the command line that the SuperNode is started with."""
    from motet.protocols.processes import Troupe

    start = Troupe.start

    def started(self, name, command, **options):
        return start(self, name, [command[0], "-c", program], **options)

    monkeypatch.setattr(Troupe, "start", started)


def test_when_the_supernode_ends_so_does_the_worker_and_says_why(make_home, monkeypatch) -> None:
    stand_in(monkeypatch, "print('no such SuperLink'); raise SystemExit(3)")
    home = make_home()
    with pytest.raises(FederationError, match=r"(?s)supernode ended early with code 3.*no such SuperLink"):
        operations.run_all(home.path, announce=lambda line: None)
    assert not Spool(home.path).worker_alive()


def test_a_signal_ends_both(make_home, monkeypatch, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    stand_in(monkeypatch, f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    home = make_home()

    def terminate() -> None:
        deadline = time.monotonic() + 30
        while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    other = threading.Thread(target=terminate)
    other.start()
    operations.run_all(home.path, announce=lambda line: None)
    other.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


def test_beside_another_worker_nothing_stays_running(make_home, monkeypatch) -> None:
    stand_in(monkeypatch, "import time; time.sleep(60)")
    home = make_home()
    spool = Spool(home.path)
    spool.hold()
    Spool(home.path).submit("train", TrainRequest(charter=home.charter.digest))
    before = time.monotonic()
    try:
        with pytest.raises(WorkerBusy):
            operations.run_all(home.path, announce=lambda line: None)
    finally:
        spool.close()
    assert time.monotonic() - before < 20


@pytest.mark.parametrize("process", [operations.run_all, operations.run_supernode])
def test_a_folder_that_is_no_home_is_named(tmp_path: Path, process) -> None:
    with pytest.raises(ConfigurationError, match=r"owner\.toml"):
        process(tmp_path, announce=lambda line: None)
