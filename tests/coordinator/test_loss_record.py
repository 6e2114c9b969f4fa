"""The file of the losses that an owner told."""

import resource
from pathlib import Path

import pytest

from motet.coordinator.loss_record import MOST, LossRecord, read_losses
from motet.coordinator.run_record import LOSSES, OwnerProgress, RunRecord, RunState
from motet.protocols.canonical import hex_of
from motet.protocols.errors import StorageError
from motet.protocols.training_steps import TrainingStep

OWNER = "ed25519:" + "7" * 64


def test_losses_are_there_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "owner" / "losses.jsonl"
    assert read_losses(path) == {}
    record = LossRecord(path)
    for step, loss in [(10, 4.5), (20, 4.25), (20, 4.25)]:
        record.add(step, loss)
    assert path.read_text() == "[10,4.5]\n[20,4.25]\n"
    LossRecord(path).add(20, 4.25)
    LossRecord(path).add(30, 4.0)
    assert list(read_losses(path).items()) == [(10, 4.5), (20, 4.25), (30, 4.0)]


def test_a_training_that_goes_on_from_a_checkpoint_replaces_what_it_repeats(tmp_path: Path) -> None:
    record = LossRecord(tmp_path / "losses")
    for step, loss in [(10, 4.0), (20, 3.0), (30, 2.0), (25, 2.5), (35, 1.5)]:
        record.add(step, loss)
    assert list(read_losses(tmp_path / "losses").items()) == [(10, 4.0), (20, 3.0), (25, 2.5), (35, 1.5)]
    record.add(1, 5.0)
    assert read_losses(tmp_path / "losses") == {1: 5.0}


def test_another_training_begins_its_own_curve_at_once(tmp_path: Path) -> None:
    path = tmp_path / "losses"
    record = LossRecord(path)
    for step, loss in [(10, 4.0), (200, 3.0)]:
        record.add(step, loss, training="a" * 12)
    record.add(200, 3.0, training="b" * 12)
    assert read_losses(path) == {200: 3.0}
    LossRecord(path).add(250, 2.5, training="b" * 12)
    assert read_losses(path) == {200: 3.0, 250: 2.5}
    for number in range(3 * MOST):
        record.add(300 + number, 2.0, training=f"{number % 2:012x}")
    assert read_losses(path) == record._curve.losses == {299 + 3 * MOST: 2.0}
    assert path.read_bytes().count(b"\n") <= 2 * MOST


def test_a_record_of_before_trainings_had_names_is_read(tmp_path: Path) -> None:
    path = tmp_path / "losses"
    path.write_bytes(b"[10,4.5]\n[20,4.25]\n")
    LossRecord(path).add(30, 4.0)
    assert read_losses(path) == {10: 4.5, 20: 4.25, 30: 4.0}
    LossRecord(path).add(40, 3.5, training="a" * 12)
    assert read_losses(path) == {40: 3.5}


def test_the_file_stays_small_and_tells_the_whole_training(tmp_path: Path) -> None:
    path, steps = tmp_path / "losses", 20 * MOST
    record = LossRecord(path)
    for step in range(1, steps + 1):
        record.add(step, step / 8)
        if step % 37 == 0:
            assert read_losses(path) == LossRecord(path)._curve.losses == record._curve.losses
    kept = read_losses(path)
    assert path.read_bytes().count(b"\n") <= 2 * MOST
    assert MOST / 2 < len(kept) <= MOST
    assert (next(iter(kept)), next(reversed(kept))) == (1, steps)
    assert list(kept) == sorted(kept)
    assert all(loss == step / 8 for step, loss in kept.items())


@pytest.mark.parametrize(
    "tail",
    [
        b"[12",
        b"[120,3",
        b"\x00\x00",
        b"[1e999,1]\n",
        b"{}\n[1]\n[30,NaN]\n[null,1]\n",
        b"\xff\n",
        b'"12"\n[30,1,7]\n[30,1,["a"]]\n',
    ],
)
def test_a_line_that_was_cut_off_or_damaged_is_passed_over(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "losses"
    path.write_bytes(b"[10,4.5]\n" + tail)
    assert read_losses(path) == {10: 4.5}
    LossRecord(path).add(20, 4.0)
    assert read_losses(path) == {10: 4.5, 20: 4.0}


def test_a_full_disk_costs_no_other_line(tmp_path: Path) -> None:
    path, (soft, hard) = tmp_path / "losses", resource.getrlimit(resource.RLIMIT_FSIZE)
    record = LossRecord(path)
    record.add(10, 4.5)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12, hard))
        record.add(20, 4.25)  # three bytes of it
        with pytest.raises(StorageError):
            record.add(30, 4.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_losses(path) == {10: 4.5}
    record.add(40, 3.75)
    assert read_losses(path) == {10: 4.5, 20: 4.25, 30: 4.0, 40: 3.75}


def test_a_run_keeps_the_losses_of_running_jobs_alone(tmp_path: Path) -> None:
    line = "step {} of 100, loss {:.3f} nats per token, 900 tokens/s".format
    with RunRecord.hold(tmp_path, "1") as record:
        for job, detail in [
            ("running", "training on 7 documents"),
            ("running", line(10, 4)),
            ("running", line(10, 4)),
            ("running", "at work"),
            ("failed", line(11, 9)),
            ("running", line(20, 3)),
        ]:
            progress = OwnerProgress(name="law", connected=True, standing="open", job=job, detail=detail)
            record.publish(RunState(run="1", phase="gather", updated=1.0, owners={OWNER: progress}))
    assert RunRecord.losses(tmp_path, OWNER) == {10: 4.0, 20: 3.0}
    assert (tmp_path / "run" / "owners" / hex_of(OWNER) / LOSSES).read_bytes().count(b"\n") == 2
    assert RunRecord.losses(tmp_path, "ed25519:" + "8" * 64) == {}


def test_a_run_tells_trainings_apart_also_after_another_run(tmp_path: Path) -> None:
    for run, training, step in [("1", "a", 90), ("2", "a", 95), ("2", "b", 96)]:
        detail = f"{TrainingStep(step=step, steps=100, loss=2, training=training * 12)}, 900 tokens/s"
        progress = OwnerProgress(name="law", connected=True, standing="open", job="running", detail=detail)
        with RunRecord.hold(tmp_path, run) as record:
            record.publish(RunState(run=run, phase="gather", updated=1.0, owners={OWNER: progress}))
        assert RunRecord.losses(tmp_path, OWNER) == ({90: 2.0, step: 2.0} if training == "a" else {96: 2.0})
