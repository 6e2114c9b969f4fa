"""Contributions that are forged, damaged, late or somebody else's: refused by name, recorded, and nothing lost."""

import json

import pytest

from motet.protocols.container import UPDATE_NAME
from motet.protocols.contribution import CodecRecord, Contribution
from motet.protocols.signing import Signed, SigningKey

from .damage import add, crop, cut, drop, escape, forge, key_of, poison, tamper, widen

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (poison, "not-finite"),
        (crop, "wrong-shape"),
        (widen, "wrong-dtype"),
        (drop, "missing-tensor"),
        (add, "extra-tensor"),
        (escape, "malformed"),
    ],
)
def test_a_wrong_update_is_refused_recorded_and_does_no_harm(trained, on_stage, change, reason) -> None:
    stage = on_stage(trained)
    paper = stage.root / "receipt.json"
    forged = forge(stage, "medicine", change=change, version=2)
    refused = stage.here("admit", forged, "--dir", stage.coordinator, "--receipt", paper, "--json", code=11)
    receipt = json.loads(json.loads(paper.read_bytes())["payload"])
    assert (refused.json["status"], receipt["reason"]) == ("refused", reason)
    assert "wanted" in receipt["message"]
    assert not list((stage.coordinator / "store" / "experts").iterdir())
    assert [kind for kind, _ in stage.ledger()][-1] == "refused"


def test_a_refused_file_says_why_to_people_too(trained, on_stage) -> None:
    stage = on_stage(trained)
    refused = stage.motet("admit", forge(stage, "medicine", change=poison), "--dir", stage.coordinator, code=11)
    assert "not-finite" in refused.out
    assert "train again" in refused.out


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("charter", "sha256:" + "1" * 64, "wrong-charter"),
        ("anchor", "sha256:" + "1" * 64, "wrong-anchor"),
        ("name", "surgery", "wrong-name"),
        ("base", "sha256:" + "1" * 64, "wrong-base"),
        ("codec", CodecRecord(method="int4"), "wrong-method"),
    ],
)
def test_a_manifest_for_something_else_is_refused(trained, on_stage, field, value, reason) -> None:
    stage = on_stage(trained)
    paper = ("--receipt", stage.root / "receipt.json")
    refused = stage.here(
        "admit", forge(stage, "medicine", **{field: value}), "--dir", stage.coordinator, *paper, code=11
    )
    assert reason in refused.out
    assert "wanted" in refused.out
    receipt = json.loads(json.loads(paper[1].read_bytes())["payload"])
    assert (receipt["status"], receipt["reason"]) == ("refused", reason)


def test_an_older_version_is_a_replay(gathered, on_stage) -> None:
    stage = on_stage(gathered)
    stage.here("admit", forge(stage, "medicine", version=7), "--dir", stage.coordinator)
    replayed = stage.here("admit", forge(stage, "medicine", version=6), "--dir", stage.coordinator, code=11)
    assert "replayed" in replayed.out
    assert "version 6, wanted one above 7" in replayed.out


def test_strangers_are_turned_away_without_a_trace(trained, on_stage) -> None:
    stage = on_stage(trained)
    before = stage.ledger()
    (stage.owner("medicine") / "keys" / "owner.pem").unlink()
    SigningKey.generate().save(stage.owner("medicine") / "keys" / "owner.pem")
    manifest = Signed.parse((stage.outbox("medicine") / "contribution.json").read_bytes()).open(Contribution)
    stranger = key_of(stage.owner("medicine")).public
    assert stranger != manifest.owner
    refused = stage.here("admit", forge(stage, "medicine", owner=stranger), "--dir", stage.coordinator, code=11)
    assert "not enrolled; send the join request" in refused.message
    assert stage.ledger() == before


def test_an_owner_who_is_not_enrolled_yet_hears_so_over_the_data_plane(trained, on_stage) -> None:
    stage = on_stage(trained)
    home = stage.owner("late")
    data = ("--data", stage.owner("medicine") / "owner.toml", "--licence", "CC0-1.0")
    stage.here("join", stage.coordinator / "charter.signed.json", "--dir", home, "--name", "late", *data, "--yes")
    stage.serve()
    refused = stage.here("train", "--dir", home, code=9)
    assert "not enrolled" in refused.message


@pytest.mark.parametrize(("harm", "offset", "code"), [(tamper, -5000, 11), (cut, -5000, 4), (cut, 100, 4)])
def test_a_damaged_file_is_refused_and_the_good_one_admitted(trained, on_stage, harm, offset, code) -> None:
    stage = on_stage(trained)
    good, before = stage.file("medicine").read_bytes(), stage.ledger()
    harm(stage.file("medicine"), offset)
    refused = stage.here("admit", stage.file("medicine"), "--dir", stage.coordinator, code=code)
    assert "again" in refused.err + refused.out
    if code == 4:
        assert stage.ledger() == before
        return
    stage.file("medicine").write_bytes(good)
    stage.here("admit", stage.file("medicine"), "--dir", stage.coordinator)
    assert [kind for kind, _ in stage.ledger()][-2:] == ["refused", "admitted"]


def test_an_update_that_changed_in_the_outbox_is_not_sent(trained, on_stage) -> None:
    stage = on_stage(trained)
    stage.serve()
    tamper(stage.outbox("medicine") / UPDATE_NAME, -5000)
    changed = stage.here("contribute", "--dir", stage.owner("medicine"), "--yes", code=9)
    assert "pack and sign the contribution again" in changed.message
    cut(stage.outbox("medicine") / UPDATE_NAME, -5000)
    assert "again" in stage.here("contribute", "--dir", stage.owner("medicine"), "--yes", code=9).message


def test_a_withdrawal_of_somebody_elses_contribution_is_refused(gathered, on_stage) -> None:
    stage = on_stage(gathered)
    digest, paper = f"sha256:{stage.outbox('medicine').name}", stage.root / "tombstone.json"
    stage.here("withdraw", digest, "--dir", stage.owner("mathematics"), "--to", paper, "--yes")
    refused = stage.here("admit", paper, "--dir", stage.coordinator, code=11)
    assert "its owner can withdraw it" in refused.message
    assert "withdrawn" not in [kind for kind, _ in stage.ledger()]


def test_no_file_and_a_file_of_something_else(trained, on_stage) -> None:
    stage = on_stage(trained)
    missing = stage.motet("admit", stage.root / "no.motet", "--dir", stage.coordinator, code=4)
    assert "check the name" in missing.message
    assert (
        "wanted"
        in stage.here("admit", stage.owner("medicine") / "owner.toml", "--dir", stage.coordinator, code=4).message
    )
    charter = stage.coordinator / "charter.signed.json"
    assert "wanted a join request" in stage.here("admit", charter, "--dir", stage.coordinator, code=4).message
