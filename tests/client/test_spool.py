"""Jobs survive crashes, torn files and impatient coordinators; one worker runs them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from motet.client.spool import RECENT, Spool
from motet.protocols.control import EvaluateRequest, TrainRequest
from motet.protocols.errors import SpoolError, WorkerBusy
from motet.protocols.jobs import job_id

CHARTER = "sha256:" + "1" * 64
TRAIN = TrainRequest(charter=CHARTER)
EVALUATE = EvaluateRequest(charter=CHARTER, composite="sha256:" + "2" * 64)

HOLDER = """
import sys, time
from pathlib import Path
from motet.client.spool import Spool
spool = Spool(Path(sys.argv[1]))
print(spool.claim().id, flush=True)
time.sleep(60)
"""

WRITER = f"""
import sys
from pathlib import Path
from motet.client.spool import Spool
from motet.protocols.control import EvaluateRequest, TrainRequest
for _ in range(20):
    Spool(Path(sys.argv[1])).submit("train", TrainRequest(charter={CHARTER!r}))
    Spool(Path(sys.argv[1])).submit("evaluate", EvaluateRequest(charter={CHARTER!r}, composite={EVALUATE.composite!r}))
"""


def test_asking_twice_is_asking_once(tmp_path: Path) -> None:
    first = Spool(tmp_path).submit("train", TRAIN)
    again = Spool(tmp_path).submit("train", TrainRequest(charter=CHARTER))
    assert first == again
    assert first.id == job_id(TRAIN)
    assert Spool(tmp_path).jobs() == [first]


def test_a_request_under_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="TrainRequest for a evaluate job"):
        Spool(tmp_path).submit("evaluate", TRAIN)


def test_jobs_are_claimed_in_the_order_they_came(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.submit("evaluate", EVALUATE)
    spool.submit("train", TRAIN)
    first = spool.claim()
    assert first is not None
    assert (first.id, first.kind, first.request) == (job_id(EVALUATE), "evaluate", EVALUATE)
    spool.update(first.id, "done", result={"n": 1})
    second = spool.claim()
    assert second is not None
    assert second.request == TRAIN
    spool.update(second.id, "waiting", detail="consent")
    assert spool.claim() is None


def test_updates_keep_what_they_do_not_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    name = spool.submit("train", TRAIN).id
    spool.update(name, "running", progress=0.25, detail="step 1 of 4")
    spool.update(name, "running", progress=0.5)
    assert spool.jobs()[0].detail == "step 1 of 4"
    done = spool.update(name, "done", result={"contribution": CHARTER})
    assert (done.progress, done.result) == (1.0, {"contribution": CHARTER})
    with pytest.raises(SpoolError, match="progress"):
        spool.update(name, "running", progress=1.5)
    with pytest.raises(SpoolError, match="no job train-0"):
        spool.update("train-0000000000000000", "running")


def test_a_failed_job_is_queued_again_when_asked_for_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    name = spool.submit("train", TRAIN).id
    spool.update(name, "failed", detail="out of memory")
    assert spool.jobs()[0].state == "failed"
    assert spool.submit("train", TRAIN).state == "queued"


def test_a_second_worker_is_told_who_is_first(tmp_path: Path) -> None:
    first, second = Spool(tmp_path), Spool(tmp_path)
    assert not second.worker_alive()
    first.claim()
    assert second.worker_alive()
    with pytest.raises(WorkerBusy, match=str(os.getpid())) as caught:
        second.claim()
    assert caught.value.pid == os.getpid()
    first.close()
    assert not second.worker_alive()
    assert second.claim() is None


def test_a_worker_killed_in_the_middle_leaves_a_job_that_is_claimed_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    name = spool.submit("train", TRAIN).id
    worker = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    with worker.stdout:
        assert worker.stdout.readline().strip() == name
        with pytest.raises(WorkerBusy) as caught:
            spool.claim()
        assert caught.value.pid == worker.pid
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert spool.jobs()[0].state == "running"
    again = spool.claim()
    assert again is not None
    assert again.id == name


@pytest.mark.parametrize("content", [b"", b'{"schema": "motet.job', b"[]", b"\xff\x00", b"null"])
def test_a_damaged_file_hides_no_other_job(tmp_path: Path, content: bytes) -> None:
    spool = Spool(tmp_path)
    name = spool.submit("train", TRAIN).id
    spool.submit("evaluate", EVALUATE)
    path = tmp_path / "spool" / "jobs" / f"{name}.json"
    path.write_bytes(content)
    (path.parent / "notes.txt").write_text("not mine")
    assert [job.id for job in spool.jobs()] == [job_id(EVALUATE)]
    assert [error for error in spool.problems() if str(path) in str(error)]
    with pytest.raises(SpoolError, match="move it out of the spool"):
        spool.submit("train", TRAIN)
    claimed = spool.claim()
    assert claimed is not None
    assert claimed.kind == "evaluate"


def test_a_job_under_a_foreign_name_is_not_run(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    jobs = tmp_path / "spool" / "jobs"
    (jobs / f"{spool.submit('train', TRAIN).id}.json").rename(jobs / "train-0000000000000000.json")
    assert spool.claim() is None
    assert "another name" in str(spool.problems()[0])


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) for _ in range(3)]
    spool = Spool(tmp_path)
    name = spool.submit("train", TRAIN).id
    for step in range(40):
        spool.update(name, "running", progress=step / 40)
    for writer in writers:
        assert writer.wait() == 0
    train = next(job for job in spool.jobs() if job.kind == "train")
    assert (train.state, train.progress) == ("running", 39 / 40)
    assert len(spool.jobs()) == 2
    assert spool.problems() == []


def test_waiting_ends_with_the_first_change(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    job = spool.submit("train", TRAIN)
    started = time.monotonic()
    assert spool.wait_for_change({}, 20) == [job]
    assert spool.wait_for_change({job.id: "queued"}, 0.3) == [job]
    spool.update(job.id, "running")
    waited = time.monotonic()
    assert spool.wait_for_change({job.id: "queued"}, 0.5)[0].state == "running"
    assert time.monotonic() - waited >= 0.5, "that it runs is no news"
    spool.update(job.id, "failed")
    assert spool.wait_for_change({job.id: "running"}, 20)[0].state == "failed"
    assert time.monotonic() - started < 5


def test_a_status_holds_the_jobs_that_changed_last_and_waits_on_no_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    first = spool.submit("train", TrainRequest(charter="sha256:" + "f" * 64))
    for number in range(RECENT + 3):
        spool.submit("train", TrainRequest(charter=f"sha256:{number:064x}"))
    assert first.id not in {job.id for job in spool.recent()}
    seen = {job.id: job.state for job in spool.recent()}
    began = time.monotonic()
    spool.wait_for_change(seen, 0.4)
    assert time.monotonic() - began >= 0.4
    spool.update(first.id, "done")
    assert spool.wait_for_change(seen, 20)[-1].id == first.id
