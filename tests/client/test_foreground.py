"""Training in the foreground: what it will be, that it is the worker's, and how it is interrupted."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from motet.client.foreground import train_now
from motet.client.outbox import packed_contributions
from motet.client.plan import plan_training
from motet.client.spool import Spool
from motet.client.worker import make_contribution
from motet.protocols.errors import ConfigurationError, DataError, WorkerBusy


def test_the_plan_is_what_happens(make_home) -> None:
    home = make_home()
    before = sorted(home.work.rglob("*"))
    plan = plan_training(home.path)
    assert sorted(home.work.rglob("*")) == before
    packed = train_now(home.path, announce=lambda line: None)
    record = packed.contribution.training
    assert (plan.documents, plan.held_out_documents) == (record.documents, record.held_out_documents)
    assert (plan.steps, plan.tokens) == (record.steps, record.tokens)
    header = 1200  # a tiny anchor's update is half header
    assert plan.update_bytes == pytest.approx(packed.contribution.update_bytes - header, rel=0.1)
    assert plan.as_json()["trained_parameters"] == 2 * 3 * 32 * 48
    assert plan.lines()[-1] == "nothing was trained and nothing has left"


def test_it_makes_what_the_worker_makes(make_home) -> None:
    told = list[str]()
    here = train_now(make_home("here").path, announce=told.append)
    there = make_contribution(make_home("there"))
    assert there is not None
    assert here.contribution.update == there.contribution.update
    assert told[0].startswith("  0 %")


def test_a_plan_names_what_would_stand_in_the_way(make_home) -> None:
    home = make_home(texts=["only one document"])
    with pytest.raises(DataError, match="distinct documents"):
        plan_training(home.path)


def test_beside_a_worker_it_does_not_start(make_home) -> None:
    home = make_home()
    spool = Spool(home.path)
    spool.hold()
    try:
        with pytest.raises(WorkerBusy):
            train_now(home.path, announce=lambda line: None)
    finally:
        spool.close()
    assert packed_contributions(home) == []


def test_an_interrupt_keeps_a_checkpoint_and_gives_everything_back(make_home) -> None:
    home = make_home(training={"steps": 2000, "checkpoint_every": 1000})
    before = signal.getsignal(signal.SIGINT)

    stepped = threading.Event()

    def interrupt() -> None:
        stepped.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    def announce(line: str) -> None:
        if "step" in line:
            stepped.set()

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        train_now(home.path, announce=announce)
    other.join()
    assert list((home.work / "training").glob("*/checkpoint-*.safetensors"))
    assert packed_contributions(home) == []
    assert signal.getsignal(signal.SIGINT) is before
    assert not Spool(home.path).worker_alive()


def test_a_home_that_is_none_is_named(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"owner\.toml"):
        plan_training(tmp_path)


@pytest.mark.slow
def test_the_command_ends_with_130_and_goes_on_when_run_again(make_home) -> None:
    home = make_home(training={"steps": 200, "checkpoint_every": 5})
    command = [sys.executable, "-m", "motet.cli", "train", "--dir", str(home.path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(home.work.glob("training/*/training.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "run the same command again" in told
    assert packed_contributions(home) == []
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert len(packed_contributions(home)) == 1
