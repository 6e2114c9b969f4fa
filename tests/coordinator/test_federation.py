"""A federation as the coordinator's commands meet it: files and replies in, composites and scores out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from motet.coordinator.federation import Federation
from motet.coordinator.home import CoordinatorHome
from motet.protocols.canonical import hex_of
from motet.protocols.container import write_container
from motet.protocols.contribution import Contribution, EvaluationReport, Score
from motet.protocols.errors import AdmissionRefused, DocumentError, ExpertSetError, SignatureError
from motet.protocols.report import row_names
from motet.protocols.signing import Signed, seal

from .conftest import WriteUpdate, opened


@pytest.mark.slow
def test_a_federation_from_files_to_scores(
    home: CoordinatorHome,
    medicine: object,
    make_owner: Callable[[str], object],
    write_update: WriteUpdate,
    tmp_path: Path,
) -> None:
    federation = Federation(home)
    law = make_owner("law")
    (tmp_path / "law.json").write_bytes(law.request(home).canonical())
    assert federation.admit_file(tmp_path / "law.json").status == "enrolled"
    assert federation.flower_keys() == {"law": law.flower_key, "medicine": medicine.flower_key}

    update = write_update(tmp_path / "law.safetensors", seed=1)
    signed = law.manifest(home, update)
    write_container(tmp_path / "law.motet", signed, update)
    filed = federation.admit_file(tmp_path / "law.motet")
    assert filed.status == "admitted"
    assert federation.admit_file(tmp_path / "law.motet") == filed
    mine = write_update(tmp_path / "medicine.safetensors", seed=2)
    receipt = federation.admit_inline(medicine.manifest(home, mine).canonical(), mine.read_bytes())
    assert opened(home, receipt).received_bytes == mine.stat().st_size
    assert sorted(each.name for each in federation.admitted().values()) == ["law", "medicine"]
    assert list(home.intake_directory.iterdir()) == []

    composite = federation.assemble()
    assert composite.path == home.composites_directory / hex_of(composite.digest)
    assert federation.assemble().digest == composite.digest
    alone = federation.assemble(without=["law"])
    assert [member.name for member in alone.members] == ["medicine"]
    assert [entry.subject for entry in home.ledger.entries() if entry.kind == "composite"] == [
        composite.digest,
        alone.digest,
    ]
    assert set(federation.composites()) == {composite.digest, alone.digest}
    assert federation.intake.publication(composite.digest) == (composite.path, "composite.json")
    with pytest.raises(ExpertSetError, match="surgery"):
        federation.assemble(without=["surgery"])

    rows = federation.score_public(alone.digest)
    assert set(rows) >= {"anchor", "composite", "expert:medicine"}
    assert federation.score_public(alone.digest) == rows
    check_evaluations(federation, law, medicine, composite.digest)

    (tmp_path / "bye.json").write_bytes(law.withdrawal(home, signed.open(Contribution).digest).canonical())
    assert federation.admit_file(tmp_path / "bye.json").status == "withdrawn"
    assert federation.intake.publication(composite.digest) is None
    assert federation.assemble().digest == alone.digest


def check_evaluations(federation: Federation, law: object, medicine: object, composite: str) -> None:
    def report(signer: object, **changes: object) -> Signed:
        score = Score(nats=10.0, bytes=20, documents=2, bits_per_byte_variance=0.1)
        values = {"charter": federation.charter.digest, "composite": composite, "owner": signer.key.public}
        values |= {"domain": signer.name, "rows": dict.fromkeys(row_names(("law", "medicine")), score)}
        return seal(EvaluationReport.model_validate(values | changes), signer.key)

    kept = federation.keep_evaluation(report(law))
    federation.keep_evaluation(report(law))
    assert federation.evaluations(composite) == {law.key.public: kept}
    wrong = [
        {"domain": "medicine"},
        {"rows": {"composite": kept.rows["composite"]}},
        {"composite": "sha256:" + "0" * 64},
        {"charter": "sha256:" + "0" * 64},
    ]
    for changes in wrong:
        with pytest.raises(DocumentError):
            federation.keep_evaluation(report(law, **changes))
    with pytest.raises(SignatureError):
        federation.keep_evaluation(report(law, owner=medicine.key.public))
    good = json.loads(report(medicine).canonical())
    good["payload"] = good["payload"].replace('"nats":10.0', '"nats":1e999')
    with pytest.raises(DocumentError):
        federation.keep_evaluation(Signed.model_validate(good))


def test_files_that_are_nothing(home: CoordinatorHome, medicine: object, tmp_path: Path) -> None:
    federation = Federation(home)
    charter = (home.path / "charter.signed.json").read_bytes()
    for number, data in enumerate((b"", b"{", b'{"a":1}', b"x" * 2000, charter)):
        path = tmp_path / f"{number}"
        path.write_bytes(data)
        with pytest.raises(DocumentError):
            federation.admit_file(path)
    with pytest.raises(DocumentError, match="cannot read"):
        federation.admit_file(tmp_path / "nowhere")


def test_too_much_inline(home: CoordinatorHome, medicine: object, update: Path) -> None:
    federation = Federation(home)
    with pytest.raises(AdmissionRefused) as caught:
        federation.admit_inline(medicine.manifest(home, update).canonical(), bytes((1 << 19) + 1))
    assert caught.value.reason == "too-large"
    with pytest.raises(DocumentError):
        federation.admit_inline(b"nonsense", b"")
