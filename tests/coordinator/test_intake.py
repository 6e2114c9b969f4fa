"""From a signed manifest to an entry, a file and a receipt; and everything that comes between, kills included."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from motet.coordinator.home import CoordinatorHome
from motet.coordinator.intake import Intake
from motet.coordinator.store import ExpertStore
from motet.moe.experts import materialise, read_expert
from motet.protocols.canonical import hex_of
from motet.protocols.codec import UpdateReader
from motet.protocols.contribution import Contribution, Terms
from motet.protocols.errors import AdmissionRefused, FederationError, SignatureError
from motet.protocols.signing import Signed
from motet.protocols.transfer import audience_of

from .conftest import WriteUpdate, kinds, opened


def pretend_admitted(home: CoordinatorHome, signed: Signed) -> None:
    """An admitted entry without the work: for tests of what comes after."""
    from motet.coordinator.ledger_store import Draft

    body = {"signed": signed.model_dump(mode="json", by_alias=True), "received_bytes": 1}
    home.ledger.append(lambda _: Draft(kind="admitted", subject=signed.open(Contribution).digest, body=body))


@pytest.mark.slow
def test_admitted_once_for_all(home: CoordinatorHome, intake: Intake, medicine: object, update: Path) -> None:
    signed = medicine.manifest(home, update)
    contribution = signed.open(Contribution)
    assert intake.check(contribution, signed) is None
    receipt = intake.admit(signed, update, 12345)
    said = opened(home, receipt)
    assert (said.status, said.received_bytes, said.contribution) == ("admitted", 12345, contribution.digest)
    assert home.ledger.entries()[said.sequence].digest == said.entry
    assert intake.check(contribution, signed) == intake.admit(signed, update, 999) == receipt
    assert kinds(home) == ["charter", "enrolled", "admitted"]

    path = intake.expert_file(contribution.digest)
    expert = read_expert(path, home.anchor, name="medicine", contribution=contribution.digest)
    name = home.anchor_manifest.ffn()[0].name
    with UpdateReader(update) as reader:
        assert torch.equal(
            expert.ffn[name], materialise(home.anchor.tensor(name), torch.from_numpy(reader.tensor(name)))
        )

    withdrawal = medicine.withdrawal(home, contribution.digest)
    gone = intake.withdraw(withdrawal)
    assert opened(home, gone).status == "withdrawn"
    assert not path.exists()
    assert home.ledger.standing().active == {}
    assert intake.withdraw(withdrawal) == gone
    with pytest.raises(AdmissionRefused) as caught:
        intake.check(contribution, signed)
    assert caught.value.reason == "withdrawn"
    assert opened(home, intake.admit(signed, update, 1)).reason == "withdrawn"
    assert not path.exists()


@pytest.mark.slow
def test_a_sum_that_is_not_finite_is_the_updates_fault_and_a_damaged_anchor_is_not(
    home: CoordinatorHome, medicine: object, write_update: WriteUpdate, tmp_path: Path
) -> None:
    """What an inspection would have found as well, said by the child that makes the expert."""
    store = ExpertStore(home.experts_directory)
    update = write_update(tmp_path / "u", poison=float("nan"))
    contribution = medicine.manifest(home, update).open(Contribution)
    with pytest.raises(AdmissionRefused) as caught:
        store.materialise(contribution, update, home)
    assert caught.value.reason == "not-finite"
    assert not store.file_of(contribution.digest).exists()
    good = write_update(tmp_path / "good")
    contribution, whole = medicine.manifest(home, good).open(Contribution), good.read_bytes()
    good.write_bytes(whole[:-1])  # since it was inspected
    with pytest.raises(FederationError, match=r"\(CodecError: "):
        store.materialise(contribution, good, home)
    good.write_bytes(whole)
    weights = home.anchor_directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FederationError, match="TensorFileError"):
        store.materialise(contribution, good, home)


@pytest.mark.slow
def test_a_poisoned_update_is_refused_and_recorded_once(
    home: CoordinatorHome, intake: Intake, medicine: object, write_update: WriteUpdate, tmp_path: Path
) -> None:
    bad = write_update(tmp_path / "bad", poison=float("nan"))
    signed = medicine.manifest(home, bad)
    said = opened(home, intake.admit(signed, bad, 5))
    assert (said.status, said.reason) == ("refused", "not-finite")
    assert "wanted finite values" in (said.message or "")
    assert opened(home, intake.admit(signed, bad, 5)) == said
    assert kinds(home) == ["charter", "enrolled", "refused"]
    assert list(home.experts_directory.iterdir()) == []


def test_an_expired_expert_is_refused_and_the_ledger_says_so(
    home: CoordinatorHome, intake: Intake, medicine: object, update: Path
) -> None:
    terms = Terms(licence="CC0-1.0", expiry="2020-01-01")
    said = opened(home, intake.admit(medicine.manifest(home, update, terms=terms), update, 1))
    assert (said.status, said.reason) == ("refused", "expired")
    assert kinds(home) == ["charter", "enrolled", "refused"]


@pytest.mark.slow
def test_a_tampered_update_is_refused_and_the_true_one_still_admitted(
    home: CoordinatorHome, intake: Intake, medicine: object, update: Path
) -> None:
    signed, whole = medicine.manifest(home, update), update.read_bytes()
    update.write_bytes(whole[:-1] + b"!")
    assert opened(home, intake.admit(signed, update, 1)).reason == "wrong-digest"
    update.write_bytes(whole)
    assert opened(home, intake.admit(signed, update, 1)).status == "admitted"


def test_strangers_leave_no_trace(
    home: CoordinatorHome, intake: Intake, medicine: object, make_owner: Callable[[str], object], update: Path
) -> None:
    stranger = make_owner("law")
    signed = stranger.manifest(home, update)
    before = kinds(home)
    for call in (
        lambda: intake.check(signed.open(Contribution), signed),
        lambda: intake.admit(signed, update, 1),
    ):
        with pytest.raises(AdmissionRefused) as caught:
            call()
        assert caught.value.reason == "unknown-owner"
    forged = medicine.manifest(home, update).model_copy(update={"signature": "0" * 128})
    with pytest.raises(AdmissionRefused) as caught:
        intake.admit(forged, update, 1)
    assert caught.value.reason == "bad-signature"
    assert kinds(home) == before
    assert not intake.enrolled(stranger.key.public)
    assert intake.enrolled(medicine.key.public)


def test_early_refusals_are_recorded_once_and_not_for_ever(
    home: CoordinatorHome, intake: Intake, medicine: object, update: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("motet.coordinator.intake.MAX_REFUSALS", 3)
    for bits in (1.0, 1.0, 1.1, 1.2, 1.3, 1.4):
        signed = medicine.manifest(home, update, anchor="sha256:" + "0" * 64, bits_per_byte={"anchor": bits})
        with pytest.raises(AdmissionRefused) as caught:
            intake.check(signed.open(Contribution), signed)
        assert caught.value.reason == "wrong-anchor"
    assert kinds(home) == ["charter", "enrolled", "refused", "refused", "refused"]


def test_a_replay_is_refused(home: CoordinatorHome, intake: Intake, medicine: object, update: Path) -> None:
    pretend_admitted(home, medicine.manifest(home, update, version=2))
    old = medicine.manifest(home, update, version=1)
    with pytest.raises(AdmissionRefused) as caught:
        intake.check(old.open(Contribution), old)
    assert caught.value.reason == "replayed"
    assert opened(home, intake.admit(old, update, 1)).reason == "replayed"


def test_only_its_owner_withdraws(
    home: CoordinatorHome, intake: Intake, medicine: object, make_owner: Callable[[str], object], update: Path
) -> None:
    signed = medicine.manifest(home, update)
    digest = signed.open(Contribution).digest
    pretend_admitted(home, signed)
    law = make_owner("law")
    home.enrol(law.request(home))
    for withdrawal in (law.withdrawal(home, digest), medicine.withdrawal(home, "sha256:" + "0" * 64)):
        with pytest.raises(AdmissionRefused) as caught:
            intake.withdraw(withdrawal)
        assert caught.value.reason == "not-yours"
    forged = law.withdrawal(home, digest)
    payload = forged.payload.replace(law.key.public, medicine.key.public)
    with pytest.raises(SignatureError):
        intake.withdraw(forged.model_copy(update={"payload": payload}))
    assert digest in home.ledger.standing().active


def test_what_is_published(home: CoordinatorHome, intake: Intake) -> None:
    assert intake.audience == audience_of(home.charter)
    assert intake.publication(home.charter.anchor.bundle) == (home.anchor_directory, "bundle.json")
    assert intake.publication("sha256:" + "0" * 64) is None


KILLED = """
import os, sys, json
from pathlib import Path
from motet.coordinator import intake as module
from motet.coordinator.home import CoordinatorHome
from motet.protocols.signing import Signed
home = CoordinatorHome(Path(sys.argv[1]))
def die(*_):
    os.kill(os.getpid(), 9)
home.ledger.append = die
module.Intake(home).admit(Signed.parse(Path(sys.argv[2]).read_bytes()), Path(sys.argv[3]), 7)
"""


@pytest.mark.slow
def test_kill_9_between_store_and_ledger(home: CoordinatorHome, medicine: object, update: Path, tmp_path: Path) -> None:
    signed = medicine.manifest(home, update)
    (tmp_path / "signed.json").write_bytes(signed.canonical())
    command = [sys.executable, "-c", KILLED, home.path, tmp_path / "signed.json", update]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    orphan = home.experts_directory / hex_of(signed.open(Contribution).digest)
    assert orphan.is_dir()
    assert kinds(home) == ["charter", "enrolled"]
    restarted = Intake(home)
    assert not orphan.exists()
    assert opened(home, restarted.admit(signed, update, 7)).status == "admitted"
    assert (orphan / "expert.safetensors").exists()
    Intake(home)
    assert (orphan / "expert.safetensors").exists()


def test_nothing_is_cleared_while_somebody_admits(home: CoordinatorHome, intake: Intake) -> None:
    half = home.experts_directory / ("f" * 64)
    half.mkdir()
    with intake.workspace() as workspace:
        Intake(home)
        assert half.exists()
        assert workspace.exists()
    Intake(home)
    assert not half.exists()
    assert not workspace.exists()


FULL = """
import resource, sys
from pathlib import Path
from motet.coordinator import store
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.intake import Intake
from motet.protocols.errors import StorageError
from motet.protocols.signing import Signed
intake = Intake(CoordinatorHome(Path(sys.argv[1])))
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
try:
    intake.admit(Signed.parse(Path(sys.argv[2]).read_bytes()), Path(sys.argv[3]), 7)
except StorageError as error:
    print("said:", error)
"""


@pytest.mark.slow
def test_a_full_disk_refuses_nobody(home: CoordinatorHome, medicine: object, update: Path, tmp_path: Path) -> None:
    signed = medicine.manifest(home, update)
    home.close()
    (tmp_path / "signed.json").write_bytes(signed.canonical())
    command = [sys.executable, "-c", FULL, home.path, tmp_path / "signed.json", update]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "said: cannot write" in ran.stdout
    again = CoordinatorHome(home.path)
    assert kinds(again) == ["charter", "enrolled"]
    assert opened(again, Intake(again).admit(signed, update, 7)).status == "admitted"
    again.close()


@pytest.mark.slow
def test_the_same_upload_from_two_threads_is_one_entry(
    home: CoordinatorHome, intake: Intake, medicine: object, update: Path
) -> None:
    signed = medicine.manifest(home, update)
    receipts: list[Signed] = []
    threads = [threading.Thread(target=lambda: receipts.append(intake.admit(signed, update, 3))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receipts) == 2
    assert len({receipt.canonical() for receipt in receipts}) == 1
    assert kinds(home).count("admitted") == 1
