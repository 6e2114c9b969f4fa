"""The worker: jobs one at a time, every ending told, killed and started again without loss."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from motet.client.contribute import contribute
from motet.client.outbox import find_packed, packed_contributions
from motet.client.owner import OwnerHome
from motet.client.preparation import prepare
from motet.client.spool import Spool
from motet.client.training import fingerprint
from motet.client.worker import make_contribution, run_worker, training_name
from motet.protocols.control import EvaluateRequest, JobState, TrainRequest
from motet.protocols.errors import WorkerBusy
from motet.protocols.jobs import contribution_of, rides_inline
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, SigningKey
from motet.protocols.training_steps import TrainingStep
from tests.client.conftest import edit, packed_of

SCRIPT = "import sys, pathlib; from motet.client.worker import run_worker; run_worker(pathlib.Path(sys.argv[1]))"


def ask(home: OwnerHome) -> str:
    return Spool(home.path).submit("train", TrainRequest(charter=home.charter.digest)).id


def state_of(home: OwnerHome, job: str) -> JobState:
    return Spool(home.path).job(job).state


def run_once(home: OwnerHome, job: str) -> JobState:
    run_worker(home.path, once=True)
    return state_of(home, job)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_training_job_ends_with_a_receipt(make_home, coordinator) -> None:
    home = make_home()
    state = run_once(home, ask(home))
    assert (state.state, state.progress) == ("done", 1.0)
    result = state.result or {}
    assert result["contribution"] == coordinator.received[0].digest
    assert result["update_bytes"] == coordinator.received[0].update_bytes
    assert result["sent_bytes"] > result["update_bytes"]
    assert result["inline"] is False
    assert Signed.model_validate(result["receipt"]).open(Receipt, by=home.config.coordinator).status == "admitted"


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """Every line that the spool is told, which the coordinator may read."""
    lines = list[str]()
    update = Spool.update

    def heard(self, name, state, progress=None, detail=None, result=None) -> JobState:
        lines.append(detail or "")
        return update(self, name, state, progress, detail, result)

    monkeypatch.setattr(Spool, "update", heard)
    monkeypatch.setattr("motet.client.worker.REPORT_SECONDS", 0.0)
    return lines


def test_without_consent_it_waits_and_nothing_leaves(make_home, coordinator, told) -> None:
    home = make_home(contribution={"consent": "ask"})
    job = ask(home)
    state = run_once(home, job)
    assert state.state == "waiting"
    assert len(told) > 6
    assert "motet contribute" in state.detail
    assert coordinator.received == []
    assert not any(word in line for line in told for word in ("loss", "documents"))
    contribute(home, find_packed(home))
    assert state_of(home, job).state == "done"
    assert len(coordinator.received) == 1


def test_what_was_contributed_by_hand_does_not_wait_for_consent_again(make_home, coordinator) -> None:
    home = make_home(contribution={"consent": "ask"})
    packed = make_contribution(home)
    assert packed is not None
    contribute(home, packed)
    assert run_once(home, ask(home)).state == "done"
    assert len(coordinator.received) == 1


@pytest.mark.parametrize("asked", ["before", "after"])
def test_an_expert_sent_by_hand_is_not_replaced_by_the_job_that_asks_for_one(
    make_home, coordinator, asked: str
) -> None:
    home = make_home()
    job = ask(home) if asked == "before" else None
    sent = packed_of(home)
    contribute(home, sent)
    edit(home, "steps = 6", "steps = 7")  # what the job would train, and send by itself
    state = run_once(home, job or ask(home))
    assert (state.state, contribution_of(state), rides_inline(state)) == ("done", sent.digest, False)
    assert [manifest.digest for manifest in coordinator.received] == [sent.digest]
    contribute(home, packed_of(home))  # another by hand is sent, and the job stays what it was
    assert contribution_of(state_of(home, state.id)) == sent.digest
    assert [manifest.version for manifest in coordinator.received] == [1, 2]


def test_a_contribution_by_hand_that_is_refused_leaves_the_job_to_be_run(make_home, coordinator) -> None:
    coordinator.verdict = "refused"
    home = make_home()
    contribute(home, packed_of(home))
    assert Spool(home.path).jobs() == []


def test_what_is_sent_leaves_a_job_under_way_alone_and_ends_one_that_a_crash_left(make_home, coordinator) -> None:
    home = make_home()
    job, packed, worker = ask(home), packed_of(home), Spool(home.path)
    worker.claim()
    contribute(home, packed)
    assert state_of(home, job).state == "running"
    worker.close()
    contribute(home, packed)
    assert state_of(home, job).state == "done"
    assert len(coordinator.received) == 1


def test_a_contribution_that_is_refused_ends_the_job_that_waited_as_failed(make_home, coordinator) -> None:
    coordinator.verdict = "refused"
    home = make_home(contribution={"consent": "ask"})
    job = ask(home)
    run_once(home, job)
    contribute(home, find_packed(home))
    state = state_of(home, job)
    assert state.state == "failed"
    assert "wrong-anchor" in state.detail


def test_with_flower_the_update_is_offered_inline_and_the_losses_were_told(make_home, told) -> None:
    home = make_home(contribution={"transport": "flower"})
    state = run_once(home, ask(home))
    steps = [found for line in told if (found := TrainingStep.told_in(line))]
    assert [found.step for found in steps] == list(range(1, home.config.training.steps + 1))
    assert all(0 < found.loss < 10 for found in steps)
    assert {found.training for found in steps} == {training_name(home, prepare(home))}
    assert state.state == "done"
    assert rides_inline(state)
    assert contribution_of(state) == find_packed(home).digest


def test_a_trainings_name_is_that_of_what_is_trained_and_none_can_be_tried_without_the_key(make_home) -> None:
    home = make_home()
    material = prepare(home)
    name = training_name(home, material)
    longer = home.config.model_copy(update={"training": home.config.training.model_copy(update={"steps": 7})})
    others = [
        training_name(replace(home, config=longer), material),
        training_name(home, replace(material, corpus=replace(material.corpus, train=material.corpus.train[1:]))),
        training_name(replace(home, key=SigningKey.generate()), material),
    ]
    assert training_name(OwnerHome.load(home.path), prepare(home)) == name
    assert len({name, *others}) == 4
    assert name not in fingerprint(material, home.config.training)


def test_a_refusal_is_a_failure_with_its_reason(make_home, coordinator) -> None:
    coordinator.verdict = "refused"
    home = make_home()
    state = run_once(home, ask(home))
    assert state.state == "failed"
    assert "wrong-anchor" in state.detail


def test_a_failed_job_says_of_what_kind_and_the_next_one_runs(make_home, coordinator) -> None:
    home = make_home(texts=["only one document"])
    job = ask(home)
    other = Spool(home.path).submit(
        "evaluate", EvaluateRequest(charter=home.charter.digest, composite="sha256:" + "3" * 64)
    )
    state = run_once(home, job)
    assert state.state == "failed"
    assert state.detail.startswith("DataError")
    assert state_of(home, other.id).state == "failed"


def test_a_job_under_another_charter_fails(make_home) -> None:
    home = make_home()
    job = Spool(home.path).submit("train", TrainRequest(charter="sha256:" + "4" * 64))
    assert "the charter that the owner joined" in run_once(home, job.id).detail


def test_the_coordinator_reads_no_path_and_the_owners_log_the_whole_message(make_home, caplog) -> None:
    home = make_home()
    (home.path / "own.jsonl").write_text('{"diagnosis": "private"}\n', encoding="utf-8")
    state = run_once(home, ask(home))
    assert state.detail.startswith("DataError: the text cannot be used")
    for private in (str(home.path), "own.jsonl", "diagnosis"):
        assert private not in state.detail
        assert private in caplog.text


def test_an_unforeseen_error_is_told_without_its_message(make_home, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(home: OwnerHome) -> None:
        raise RuntimeError("the patient's name")

    monkeypatch.setattr("motet.client.worker.prepare", explode)
    home = make_home()
    state = run_once(home, ask(home))
    assert state.state == "failed"
    assert "RuntimeError" in state.detail
    assert "patient" not in state.detail


def test_one_worker_at_a_time(make_home) -> None:
    home, stop = make_home(), threading.Event()
    worker = threading.Thread(target=run_worker, args=(home.path,), kwargs={"stop": stop})
    worker.start()
    try:
        wait_for(Spool(home.path).worker_alive)
        with pytest.raises(WorkerBusy):
            run_worker(home.path, once=True)
    finally:
        stop.set()
        worker.join(10)
    assert not Spool(home.path).worker_alive()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_ended_in_training_goes_on_to_the_same_expert(make_home, coordinator, number: int) -> None:
    settings = {"steps": 200, "checkpoint_every": 10}
    home, twin = make_home("medicine", training=settings), make_home("twin", training=settings)
    job = ask(home)
    process = start_worker(home)
    try:
        checkpoints = home.work / "training"
        wait_for(lambda: any(checkpoints.glob("*/training.json")))
        process.send_signal(number)
        assert process.wait(30) == (0 if number == signal.SIGTERM else -number)
        assert packed_contributions(home) == []
        assert state_of(home, job).state == ("queued" if number == signal.SIGTERM else "running")
        state = run_once(home, job)
    finally:
        process.kill()
        process.wait()
    assert state.state == "done"
    assert find_packed(home).contribution.update == packed_of(twin).contribution.update


def start_worker(home: OwnerHome) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(home.path)], env=os.environ, cwd=Path.cwd())
