"""The example for Slurm, run by bash with stand-ins for what only a cluster has."""

import os
import signal
import subprocess
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "owner.sbatch"
WORKER = """#!/bin/bash
trap 'echo kept > "$PLACE/checkpoint"; exit 0' TERM
echo "$@" > "$PLACE/called"
for _ in $(seq 600); do [ -e "$PLACE/done" ] && exit 3; sleep 0.05; done
"""
SCONTROL = '#!/bin/bash\necho "$@" > "$PLACE/requeued"\n'


def started(place: Path, **more: str) -> subprocess.Popen[bytes]:
    for name, text in (("motet", WORKER), ("scontrol", SCONTROL)):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    slurm = {"PLACE": str(place), "MOTET_OWNER": "/srv/owner", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}
    path = f"{place}:{os.environ['PATH']}"
    return subprocess.Popen(["bash", str(SCRIPT)], env=os.environ | slurm | {"PATH": path} | more)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_warning_of_the_end_makes_a_checkpoint_and_queues_the_job_again(tmp_path: Path) -> None:
    process = started(tmp_path)
    wait_for(tmp_path / "called")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert (tmp_path / "called").read_text() == "work worker --once --dir /srv/owner\n"
    assert (tmp_path / "checkpoint").exists()
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_what_the_worker_ends_with_is_what_the_job_ends_with(tmp_path: Path) -> None:
    (tmp_path / "done").touch()
    assert started(tmp_path).wait(timeout=20) == 3
    assert not (tmp_path / "requeued").exists()


def test_several_tasks_are_refused(tmp_path: Path) -> None:
    assert started(tmp_path, SLURM_NTASKS="4").wait(timeout=20) == 2
    assert not (tmp_path / "called").exists()
