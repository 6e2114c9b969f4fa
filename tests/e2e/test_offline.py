"""The route of a site without a connection: files carried by hand, from joining to a composite and back out of it."""

import hashlib
import io
import json
from pathlib import Path

import pytest

from motet.protocols.container import UPDATE_NAME

pytestmark = pytest.mark.slow


def contents(folder: Path) -> dict[str, str]:
    """Relative name -> digest of every file, hidden ones included."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_carry_a_contribution_from_join_to_composite(trained, on_stage) -> None:
    from motet.moe import MotetForCausalLM
    from motet.protocols.receipts import Receipt
    from motet.protocols.signing import Signed

    stage = on_stage(trained)
    paper = stage.root / "receipt.json"
    admitted = stage.motet("admit", stage.file("medicine"), "--dir", stage.coordinator, "--receipt", paper, "--json")
    stage.motet("admit", stage.file("mathematics"), "--dir", stage.coordinator)
    made = stage.motet("assemble", "--dir", stage.coordinator, "--json").json

    coordinator = json.loads((stage.owner("medicine") / "charter.signed.json").read_bytes())["key"]
    receipt = Signed.parse(paper.read_bytes()).open(Receipt, by=coordinator)
    assert receipt.status == "admitted"
    assert receipt.contribution == f"sha256:{stage.outbox('medicine').name}" == admitted.json["subject"]
    assert sorted(made["members"]) == ["mathematics", "medicine"]
    model = MotetForCausalLM.from_pretrained(made["path"])
    assert sorted(model.config.names) == ["anchor", "mathematics", "medicine"]
    assert (Path(made["stock_path"]) / "config.json").exists()
    kinds = [kind for kind, _ in stage.ledger()]
    assert kinds == ["charter", "enrolled", "enrolled", "admitted", "admitted", "composite"]


def test_admitting_the_same_file_twice_changes_nothing(gathered, on_stage) -> None:
    stage = on_stage(gathered)
    before = stage.ledger()
    first, second = stage.root / "first.json", stage.root / "second.json"
    for paper in (first, second):
        stage.here("admit", stage.file("medicine"), "--dir", stage.coordinator, "--receipt", paper)
    assert first.read_bytes() == second.read_bytes()
    assert stage.ledger() == before


def test_a_composite_after_a_withdrawal_is_byte_identical_to_one_that_never_had_the_expert(
    trained, gathered, on_stage
) -> None:
    left, never, without = on_stage(gathered, "left"), on_stage(trained, "never"), on_stage(gathered, "without")
    left.here("assemble", "--dir", left.coordinator)
    tombstone = left.root / "withdrawal.json"
    left.motet("withdraw", "--dir", left.owner("medicine"), "--reason", "moved on", "--to", tombstone, "--yes")
    assert left.motet("admit", tombstone, "--dir", left.coordinator, "--json").json["status"] == "withdrawn"
    never.here("admit", never.file("mathematics"), "--dir", never.coordinator)

    made = [
        left.motet("assemble", "--dir", left.coordinator, "--json").json,
        never.here("assemble", "--dir", never.coordinator, "--json").json,
        without.here("assemble", "--dir", without.coordinator, "--without", "medicine", "--json").json,
    ]
    assert {each["digest"] for each in made} == {made[0]["digest"]}
    assert [each["members"] for each in made] == [["mathematics"]] * 3
    for form in ("path", "stock_path"):
        files = [contents(Path(each[form])) for each in made]
        assert len(files[0]) > 5
        assert files[0] == files[1] == files[2]


def test_a_withdrawn_expert_leaves_the_store_and_does_not_come_back_by_the_same_file(gathered, on_stage) -> None:
    stage = on_stage(gathered)
    tombstone, digest = stage.root / "withdrawal.json", stage.outbox("medicine").name
    expert = stage.coordinator / "store" / "experts" / digest
    assert expert.is_dir()
    stage.here("withdraw", "--dir", stage.owner("medicine"), "--to", tombstone, "--yes")
    for _ in range(2):
        stage.here("admit", tombstone, "--dir", stage.coordinator)
    assert not expert.exists()
    assert [kind for kind, _ in stage.ledger()].count("withdrawn") == 1
    refused = stage.here("admit", stage.file("medicine"), "--dir", stage.coordinator, code=11)
    assert "withdrawn" in refused.out
    assert "new version" in refused.out
    assert not expert.exists()


def test_a_contribution_written_twice_is_the_same_file(trained, on_stage) -> None:
    stage = on_stage(trained)
    again = stage.root / "again.motet"
    stage.here("contribute", "--dir", stage.owner("medicine"), "--to", again, "--yes")
    assert again.read_bytes() == stage.file("medicine").read_bytes()


def test_nothing_leaves_without_consent(trained, on_stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = on_stage(trained)
    file = stage.root / "unwanted.motet"
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    asked = stage.here("contribute", "--dir", stage.owner("medicine"), "--to", file, code=130)
    assert asked.out == ""
    assert f"{(stage.outbox('medicine') / UPDATE_NAME).stat().st_size:,} bytes" in asked.err
    assert "stays here" in asked.err
    assert not file.exists()
    dry = stage.here("contribute", "--dir", stage.owner("medicine"), "--dry-run", "--json").json
    assert dry["sent"] is False


def test_a_later_version_travels_as_the_change_since_the_receipt(trained, on_stage) -> None:
    """Both sides go through it: what the coordinator then holds is, bit for bit, what the owner says that it holds."""
    stage = on_stage(trained)
    home, first = stage.owner("medicine"), stage.outbox("medicine")
    receipt = ("--receipt", first / "receipt.json")
    stage.here("admit", stage.file("medicine"), "--dir", stage.coordinator, *receipt)
    settings = (home / "owner.toml").read_text()
    settings = settings.replace("steps = 3", "steps = 4").replace('successive = "auto"', 'successive = "always"')
    (home / "owner.toml").write_text(settings)

    stage.here("train", "--dir", home)
    stage.here("contribute", "--dir", home, "--to", stage.root / "second.motet", "--yes")
    shown = stage.here("inspect", stage.root / "second.motet", "--json").json
    assert shown["base"] == f"sha256:{first.name}"
    admitted = stage.here("admit", stage.root / "second.motet", "--dir", stage.coordinator, "--json").json
    assert admitted["status"] == "admitted"

    digest = admitted["subject"].removeprefix("sha256:")
    held = stage.coordinator / "store" / "experts" / digest / "expert.safetensors"
    (version,) = home.glob("work/versions/*/medicine/2")
    assert held.read_bytes() == (version / "expert.safetensors").read_bytes()
    assert json.loads((version / "version.json").read_text())["contribution"] == admitted["subject"]
    made = stage.here("assemble", "--dir", stage.coordinator, "--json").json
    assert made["members"] == ["medicine"]
