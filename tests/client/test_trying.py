"""`motet try`: what a composite brings on an owner's text, before and after joining, with and without an own expert."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from motet.cli import run
from motet.client.adapter_sources import lowrank_in
from motet.client.adapters import write_adapter
from motet.client.composite_trial import CompositeTrial
from motet.client.own_expert import find_source
from motet.client.owner import DataConfig, OwnerHome
from motet.client.try_commands import FileFormat
from motet.client.trying import guest, plan_trial, try_composite, window_length
from motet.protocols.canonical import write_atomically
from motet.protocols.composite_manifest import read_composite_manifest
from motet.protocols.errors import AnchorMismatch, AssemblyError, ConfigurationError, DataError, TransferRefused
from motet.protocols.signing import seal
from tests.client.conftest import packed_of, published, sentences

LOWRANK = {"kind": "lowrank", "rank": 4, "steps": 12, "learning_rate": 2e-2}
INT8 = {"method": "int8"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what one test trained is kept for the others: the colleague's home, and the composite of its expert."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def colleague(make_home, coordinator, kept: Path, tmp_path: Path) -> str:
    """The newest composite: another owner's expert, which learnt text like everybody's here."""
    if not (kept / "composite").exists():
        home = make_home("surgery", training=LOWRANK, codec=INT8, texts=sentences(60, seed=5))
        published(home, kept / "composite")
        shutil.copytree(home.path, kept / "surgery", symlinks=True)
        coordinator.received.clear()
    shutil.copytree(kept / "composite", tmp_path / "composite")
    digest = read_composite_manifest(tmp_path / "composite").digest
    coordinator.published[digest] = tmp_path / "composite"
    coordinator.newest = digest
    return digest


@pytest.fixture
def charter_file(federation, tmp_path: Path) -> Path:
    path = tmp_path / "charter.signed.json"
    write_atomically(path, seal(federation.charter, federation.key).canonical())
    return path


def test_an_owner_without_an_expert_learns_what_the_others_bring(make_home, colleague, coordinator) -> None:
    home = make_home(training=LOWRANK)
    plan = plan_trial(home)
    assert (plan.composite, plan.members, plan.here) == (colleague, ("surgery",), 0)
    assert plan.systems == ("anchor", "composite")
    assert not (home.path / "composites").exists()
    trial = try_composite(home)
    assert list(trial.bits_per_byte) == ["anchor", "composite"]
    assert trial.documents == plan.documents
    assert trial.bytes == plan.text_bytes
    assert trial.differences["composite"].high < 0
    assert trial.verdict.startswith("On your text the composite needs ")
    assert "less than the anchor" in trial.verdict
    assert plan_trial(home).here == plan.bytes == sum(file.size for file in manifest_of(home, colleague).files)
    coordinator.newest = None
    assert try_composite(home, composite=colleague).bits_per_byte == trial.bits_per_byte  # nothing is asked for again


def manifest_of(home: OwnerHome, digest: str):
    return read_composite_manifest(home.composite(digest))


def test_the_packed_expert_is_measured_alone_and_added(make_home, colleague, coordinator, tmp_path: Path) -> None:
    home = make_home(training=LOWRANK, codec={"method": "lossless"}, contribution={"consent": "ask"})
    packed = packed_of(home)
    told: list[str] = []
    trial = try_composite(home, tell=told.append)
    systems = ["anchor", "expert", "composite", "composite-with"]
    assert list(trial.bits_per_byte) == systems == list(plan_trial(home).systems)
    assert trial.bits_per_byte["expert"] < trial.bits_per_byte["anchor"] - 0.05
    assert trial.bits_per_byte["composite-with"] < trial.bits_per_byte["anchor"] - 0.05
    assert trial.as_json()["differences"]["composite-with"]["against"] == "composite"
    assert told == ["reading your expert", *(f"scoring {system}" for system in systems)]
    assert coordinator.received == []
    assert packed_of(home).digest == packed.digest

    file = Path(shutil.copy(packed.update, tmp_path / "expert.motetup"))
    assert_same(try_composite(home, source=find_source(home, file=file)), trial)
    write_adapter(tmp_path / "adapter", lowrank_in(home.path).factors, base=str(home.anchor))
    assert_same(try_composite(home, source=find_source(home, adapter=tmp_path / "adapter")), trial)


def assert_same(found: CompositeTrial, expected: CompositeTrial) -> None:
    """But for the order of the experts, which follows their digests, and so the order of sums."""
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, abs=1e-5)
    assert found.documents == expected.documents


def test_a_full_expert_is_added_too(make_home, colleague) -> None:
    home = make_home(training={"steps": 12}, contribution={"consent": "ask"})
    packed_of(home)
    trial = try_composite(home)
    assert trial.bits_per_byte["composite-with"] < trial.bits_per_byte["composite"]
    assert trial.bits_per_byte["expert"] < trial.bits_per_byte["anchor"] - 0.05


def test_a_member_learns_what_its_expert_brings(colleague, kept: Path, tmp_path: Path) -> None:
    home = OwnerHome.load(shutil.copytree(kept / "surgery", tmp_path / "surgery-again", symlinks=True))
    trial = try_composite(home)
    assert list(trial.bits_per_byte) == ["anchor", "expert", "composite", "composite-without"]
    assert trial.bits_per_byte["composite-without"] == pytest.approx(trial.bits_per_byte["anchor"], abs=1e-6)
    assert trial.as_json()["differences"]["composite"]["against"] == "composite-without"
    assert "Your expert takes off another" in trial.verdict


def test_a_guest_is_let_in_only_where_the_charter_says_so(
    make_home, colleague, coordinator, charter_file, federation, tmp_path: Path
) -> None:
    texts = tmp_path / "own.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(30)))
    data = DataConfig(files=(str(texts),))
    who = guest(charter_file, tmp_path / "guest", data=data, coordinator=federation.key.public)
    coordinator.owners = set()
    with pytest.raises(TransferRefused, match="the charter says no try_before_joining: join, or ask") as refused:
        try_composite(who)
    assert refused.value.reason == "unknown-owner"
    coordinator.guests = True
    trial = try_composite(who)
    assert list(trial.bits_per_byte) == ["anchor", "composite"]
    assert trial.documents == 30  # nothing was learnt from any
    assert {path.name for path in (tmp_path / "guest").iterdir()} == {"composites"}


def test_a_guests_windows_end_where_the_anchors_positions_do(make_home, charter_file, federation) -> None:
    home = make_home(training={"sequence_length": 512})
    who = guest(charter_file, home.path / "guest", data=home.config.data, coordinator=federation.key.public)
    assert [window_length(who, positions) for positions in (128, 1 << 20)] == [128, who.config.training.sequence_length]
    assert window_length(home, 128) == 512  # as the owner said, and the expert was trained


def test_a_folder_handed_over_needs_no_coordinator(make_home, coordinator, colleague, tmp_path: Path) -> None:
    home = make_home(training=LOWRANK)
    coordinator.published.clear()
    coordinator.newest = None
    plan = plan_trial(home, folder=tmp_path / "composite")
    assert plan.here == plan.bytes
    assert try_composite(home, folder=tmp_path / "composite").documents == plan.documents
    assert not (home.path / "composites").exists()
    with pytest.raises(AssemblyError, match="wanted"):
        try_composite(home, folder=tmp_path / "composite", composite="sha256:" + "0" * 64)
    (tmp_path / "composite" / "config.json").write_text("{}")
    with pytest.raises(AssemblyError, match="saw other content"):
        try_composite(home, folder=tmp_path / "composite")


def test_a_composite_of_another_anchor_is_refused(make_home, colleague, tmp_path: Path) -> None:
    home = make_home()
    pin = home.charter.anchor.model_copy(update={"digest": "sha256:" + "1" * 64})
    other = replace(home, charter=home.charter.model_copy(update={"anchor": pin}))
    with pytest.raises(AnchorMismatch, match="saw a composite of the anchor"):
        plan_trial(other, folder=tmp_path / "composite")


def test_what_is_named_must_be_there(make_home, tmp_path: Path) -> None:
    home = make_home()
    assert find_source(home) is None
    with pytest.raises(ConfigurationError, match="saw no file"):
        find_source(home, file=tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="saw no folder"):
        find_source(home, adapter=tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="wanted one of them"):
        find_source(home, file=tmp_path / "a", adapter=tmp_path / "b")


def test_a_guest_has_the_formats_of_an_owner() -> None:
    formats = get_args(DataConfig.model_fields["format"].annotation)
    assert tuple(each.value for each in FileFormat) == formats


def test_the_command(make_home, colleague, coordinator, charter_file, federation, tmp_path: Path, capsys) -> None:
    home = make_home(training=LOWRANK)
    assert run(["try", "--dir", str(home.path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"composite  {colleague}: surgery" in said
    assert "nothing was fetched but the list of files" in said
    assert run(["try", colleague, "--dir", str(home.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"].startswith("On your text the composite needs ")
    for here in ([colleague], ["--composite", str(home.composite(colleague))]):
        assert run(["try", *here, "--dir", str(home.path), "--dry-run"]) == 0
        assert "nothing was fetched, and nothing leaves" in capsys.readouterr().out
    coordinator.guests, coordinator.owners = True, set()
    texts = ("--data", str(home.path / "own.jsonl"), "--coordinator", federation.key.public)
    into = ("--dir", str(tmp_path / "guest"), "--charter", str(charter_file))
    assert run(["try", *into, *texts]) == 0
    said = capsys.readouterr()
    assert "the composite  " in said.out
    assert said.out.rstrip().endswith(".")
    table = tmp_path / "notes.jsonl"
    table.write_text("".join(json.dumps({"note": text}) + "\n" for text in sentences(30)))
    noted = ("--data", str(table), "--coordinator", federation.key.public)
    assert run(["try", *into, *noted]) == DataError.exit_code
    assert "text_field --text-field" in capsys.readouterr().err
    assert run(["try", *into, *noted, "--text-field", "note", "--format", "jsonl", "--dry-run"]) == 0
    assert "score      30 documents" in capsys.readouterr().out
    assert run(["try", "--dir", str(home.path), "--text-field", "note"]) == ConfigurationError.exit_code
    assert "without --charter" in capsys.readouterr().err
    assert run(["try", *into]) == ConfigurationError.exit_code
    assert "wanted the key that must have signed it and your text" in capsys.readouterr().err
    assert run(["try", "--dir", str(home.path), *texts]) == ConfigurationError.exit_code
