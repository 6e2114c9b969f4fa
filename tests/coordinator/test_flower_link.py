"""The thin app, the SuperLink's command line, and the record of a run."""

import fcntl
import io
import re
import threading
import zipfile
from pathlib import Path

import pytest

from motet.coordinator.flower_link import APP_DIRECTORY, SuperLink
from motet.coordinator.run_record import OwnerProgress, RunPhase, RunRecord, RunState, read_run, under_way, wait_for_run
from motet.coordinator.tls import TlsFiles
from motet.protocols.errors import FederationError
from motet.protocols.receipts import Receipt
from motet.protocols.signing import SigningKey, seal

OWNER = "ed25519:" + "1" * 64
MINE = "sha256:" + "a" * 64
COMPOSITE = "sha256:" + "c" * 64


def link(home: Path) -> SuperLink:
    return SuperLink(home=home, port=4711, tls=TlsFiles.of(home / "tls"))


def state(phase: RunPhase, run: str = "7", message: str = "") -> RunState:
    owner = OwnerProgress(name="medicine", connected=True, standing="open")
    return RunState(run=run, phase=phase, updated=0.0, owners={OWNER: owner}, message=message)


@pytest.mark.filterwarnings("ignore:'click.utils:DeprecationWarning")  # typer's own imports, under Flower's
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_the_app_carries_no_code() -> None:
    from flwr.cli.build import build_fab_from_disk

    names = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(APP_DIRECTORY))).namelist()
    assert {name for name in names if not name.startswith(".info")} == {"LICENSE", "pyproject.toml"}


def test_tls_and_node_authentication_are_always_on(tmp_path: Path) -> None:
    command = link(tmp_path).command()
    assert "--enable-supernode-auth" in command
    assert "--disable-runtime-dependency-installation" in command
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "--insecure" not in command


def test_the_connection_of_flwr_is_written(tmp_path: Path) -> None:
    link(tmp_path).environment()
    config = (tmp_path / "flower" / "config.toml").read_text()
    assert 'address = "127.0.0.1:4711"' in config
    assert re.search(r"root-certificates = .*ca\.pem", config)


def test_a_superlink_that_ended_is_no_reason_to_wait(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"ended with code 98.*port 4711"):
        link(tmp_path).wait_until_ready(lambda: 98)


@pytest.mark.slow
def test_a_superlink_that_is_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"is the SuperLink up|did not start the run"):
        link(tmp_path).submit({})


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        RunRecord.hold(tmp_path, "1"),
        pytest.raises(FederationError, match="another run"),
        RunRecord.hold(tmp_path, "2"),
    ):
        pass
    with RunRecord.hold(tmp_path, "3") as record:
        record.publish(state("gather", "3"))
    assert read_run(tmp_path) == state("gather", "3")


def test_a_run_is_under_way_while_its_process_holds_the_folder(tmp_path: Path) -> None:
    assert not under_way(tmp_path, "7")
    with RunRecord.hold(tmp_path, "7") as record:
        assert not under_way(tmp_path, "7")
        record.publish(state("gather"))
        assert under_way(tmp_path, "7")
        assert not under_way(tmp_path, "6")
        record.publish(state("done"))
        assert not under_way(tmp_path, "7")
        record.publish(state("evaluate"))
    assert not under_way(tmp_path, "7")


def test_a_run_takes_the_folder_although_somebody_looks(tmp_path: Path) -> None:
    with RunRecord.hold(tmp_path, "1"):
        pass
    with (tmp_path / "run" / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.03, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with RunRecord.hold(tmp_path, "2") as record:
            record.publish(state("gather"))


def test_receipts_and_reports_outlive_the_run(tmp_path: Path) -> None:
    key = SigningKey.generate()
    receipt = Receipt(
        charter=MINE, contribution=MINE, owner=OWNER, status="admitted", received_bytes=1, entry=MINE, sequence=1
    )
    with RunRecord.hold(tmp_path, "1") as record:
        record.keep_receipt(OWNER, MINE, seal(receipt, key))
        record.keep_report(OWNER, MINE, COMPOSITE, seal(receipt, key))
    with RunRecord.hold(tmp_path, "2") as record:
        assert record.receipts_due(OWNER) == {"a" * 64: seal(receipt, key)}
        assert record.has_report(OWNER, MINE, COMPOSITE)
        assert not record.has_report(OWNER, MINE, MINE)
        record.receipt_delivered(OWNER, "a" * 64)
        assert record.receipts_due(OWNER) == {}


def test_waiting_ends_with_the_run(tmp_path: Path) -> None:
    with RunRecord.hold(tmp_path, "7") as record:
        record.publish(state("done"))
        assert wait_for_run(tmp_path, "7", status=lambda: "running") == state("done")
        record.publish(state("failed", message="gather: nobody came"))
    with pytest.raises(FederationError, match="nobody came"):
        wait_for_run(tmp_path, "7", status=lambda: "running")


def test_a_run_that_ended_without_a_word_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"without a word .finished:failed.*flwr log 7"):
        wait_for_run(tmp_path, "7", status=lambda: "finished:failed", poll_seconds=0.01, status_seconds=0.05)
