"""From a trained expert to the coordinator's receipt: packing, sending, exporting, withdrawing, evaluating."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from motet.client.contribute import contribute, describe, export, send, sign_withdrawal, withdraw
from motet.client.evaluation import evaluate, pull
from motet.client.outbox import Packed, find_packed, packed_contributions
from motet.client.owner import OwnerHome
from motet.client.packing import pack
from motet.client.preparation import prepare
from motet.moe.anchor import Anchor
from motet.moe.experts import read_update, swap_ffn
from motet.moe.scoring import bits_per_byte, score
from motet.protocols.canonical import file_digest
from motet.protocols.container import read_container
from motet.protocols.contribution import EvaluationReport, Withdrawal
from motet.protocols.errors import AssemblyError, ConfigurationError, StorageError, TransferRefused
from motet.protocols.expert_files import StoredTensors, materialise_file
from motet.protocols.locks import locked

from .conftest import edit, packed_of


def composite_of(packed: Packed, home: OwnerHome, folder: Path) -> str:
    """A real composite of one expert, for the coordinator to publish; its digest."""
    from motet.coordinator.assembly import Member, RoutingPolicy, assemble

    anchor = Anchor.load(home.anchor)
    with StoredTensors.of_anchor(home.anchor) as stored:
        materialise_file(packed.update, anchor.manifest, stored, folder.with_suffix(".safetensors"))
    member = Member(name=home.config.name, contribution=packed.digest, expert_file=folder.with_suffix(".safetensors"))
    return assemble(anchor, [member], RoutingPolicy.of(home.charter.routing), folder).digest


def test_the_manifest_describes_the_update(make_home) -> None:
    home = make_home()
    packed = packed_of(home)
    manifest = packed.contribution
    assert manifest.update == file_digest(packed.update)
    assert manifest.update_bytes == packed.update.stat().st_size
    assert packed.folder.name == packed.digest.removeprefix("sha256:")
    assert (manifest.charter, manifest.anchor) == (home.charter.digest, home.charter.anchor.digest)
    assert manifest.training.documents + manifest.training.held_out_documents == 60


def test_figures_are_those_of_the_rounded_expert(make_home) -> None:
    home = make_home()
    packed, material = packed_of(home), prepare(home)
    model, texts = material.anchor.model(torch.float32), material.corpus.held_out
    expert = read_update(packed.update, material.anchor, name="x", contribution="")
    figures = {"anchor": bits_per_byte(score(model, material.anchor.tokenizer(), texts, sequence_length=32))}
    with swap_ffn(model, expert.ffn):
        figures["expert"] = bits_per_byte(score(model, material.anchor.tokenizer(), texts, sequence_length=32))
    assert packed.contribution.bits_per_byte == pytest.approx(figures | {"trained": figures["expert"]}, abs=1e-4)
    assert packed.contribution.bits_per_byte["expert"] == pytest.approx(figures["expert"], abs=1e-5)
    assert figures["expert"] < figures["anchor"]


def test_the_same_expert_is_the_same_contribution_and_another_has_a_higher_version(make_home) -> None:
    home = make_home()
    first = packed_of(home)
    assert packed_of(home).digest == first.digest
    path = home.path / "owner.toml"
    path.write_text(path.read_text().replace("steps = 6", "steps = 7"))
    second = packed_of(OwnerHome.load(home.path))
    assert (first.contribution.version, second.contribution.version) == (1, 2)
    assert [packed.digest for packed in packed_contributions(home)] == [first.digest, second.digest]
    assert find_packed(home).digest == second.digest


def test_other_terms_make_another_contribution_of_the_same_update(make_home) -> None:
    home = make_home()
    first = packed_of(home)
    edit(home, 'licence = "Apache-2.0"', 'licence = "CC0-1.0"')
    second = packed_of(OwnerHome.load(home.path))
    assert second.contribution.update == first.contribution.update
    assert (second.contribution.version, second.contribution.terms.licence) == (2, "CC0-1.0")


def test_an_expert_made_again_after_another_is_the_newest(make_home) -> None:
    home = make_home()
    first = packed_of(home)
    edit(home, "steps = 6", "steps = 7")
    packed_of(OwnerHome.load(home.path))
    edit(home, "steps = 7", "steps = 6")
    third = packed_of(OwnerHome.load(home.path))
    assert third.contribution.update == first.contribution.update
    assert third.contribution.version == 3
    assert find_packed(home).digest == third.digest


def test_transport_by_file_refuses_the_line(make_home, coordinator) -> None:
    home = make_home(contribution={"transport": "file"})
    packed = packed_of(home)
    with pytest.raises(ConfigurationError, match="--to FILE"):
        contribute(home, packed)
    assert coordinator.received == []


def test_half_packed_folders_are_cleared(make_home) -> None:
    home = make_home()
    (home.outbox / ".packing-killed").mkdir(parents=True)
    packed = packed_of(home)
    assert [path.name for path in home.outbox.iterdir()] == [packed.folder.name]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that nobody can write to")
def test_an_outbox_that_cannot_be_written_to_is_told(make_home) -> None:
    home = make_home()
    home.outbox.symlink_to("/sys/kernel")
    with pytest.raises(StorageError, match=r"cannot write .*outbox"):
        packed_of(home)


def test_an_unknown_contribution_is_named(make_home) -> None:
    with pytest.raises(ConfigurationError, match="motet train"):
        find_packed(make_home())


def test_sending_keeps_the_receipt_and_is_not_repeated(make_home, coordinator) -> None:
    home = make_home()
    packed = packed_of(home)
    sent = send(home, packed)
    assert sent.verdict.status == "admitted"
    assert sent.sent_bytes > packed.contribution.update_bytes
    assert json.loads(packed.receipt.read_text())["purpose"] == "motet.receipt/1"
    assert send(home, packed) == sent
    assert [manifest.digest for manifest in coordinator.received] == [packed.digest]


def test_with_flower_nothing_is_sent_by_hand(make_home) -> None:
    home = make_home(contribution={"transport": "flower"})
    assert contribute(home, packed_of(home)) is None


def test_a_file_carries_manifest_and_update(make_home, tmp_path: Path) -> None:
    packed = packed_of(make_home())
    signed, update = read_container(export(packed, tmp_path / "medicine.motet"), tmp_path)
    assert signed == packed.signed
    assert update.read_bytes() == packed.update.read_bytes()


def test_what_leaves_is_told(make_home) -> None:
    home = make_home()
    packed = packed_of(home)
    lines = "\n".join(describe(packed, home))
    for fact in (packed.digest, f"{packed.contribution.update_bytes:,}", "held-out documents", "Apache-2.0"):
        assert fact in lines


def test_withdrawing_reaches_the_coordinator(make_home, coordinator) -> None:
    home = make_home()
    packed = packed_of(home)
    send(home, packed)
    receipt = withdraw(home, packed.digest, reason="changed my mind")
    assert receipt.status == "withdrawn"
    (withdrawal,) = coordinator.withdrawn
    assert (withdrawal.contribution, withdrawal.reason) == (packed.digest, "changed my mind")


def test_a_withdrawal_as_a_file_is_signed_by_the_owner(make_home) -> None:
    home = make_home()
    digest = "sha256:" + "1" * 64
    assert sign_withdrawal(home, digest).open(Withdrawal, by=home.key.public).contribution == digest


def test_an_evaluation_leaves_sums_and_no_text(make_home, coordinator, tmp_path: Path) -> None:
    home = make_home()
    packed = packed_of(home)
    digest = composite_of(packed, home, tmp_path / "composite")
    coordinator.published[digest] = tmp_path / "composite"
    signed = evaluate(home, digest)
    report = signed.open(EvaluationReport, by=home.key.public)
    rows = {"anchor", "expert:medicine", "soup", "composite", "composite-without:medicine"}
    assert (report.domain, report.composite, set(report.rows)) == ("medicine", digest, rows)
    assert report.rows["composite-without:medicine"].nats == pytest.approx(report.rows["anchor"].nats, rel=1e-5)
    assert report.rows["expert:medicine"].nats < report.rows["anchor"].nats
    for row in ("anchor", "expert"):
        saw = bits_per_byte(report.rows["anchor" if row == "anchor" else "expert:medicine"])
        assert saw == pytest.approx(packed.contribution.bits_per_byte[row], abs=1e-5)
    held_out = prepare(home).corpus.held_out
    words = {word for text in held_out for word in text.split() if len(word) > 4}
    assert not any(word in signed.canonical().decode() for word in words)
    assert set(report.rows["anchor"].model_dump()) == {"nats", "bytes", "documents", "bits_per_byte_variance"}
    assert report.rows["anchor"].bytes == sum(len(text.encode()) for text in held_out)
    told = report.diagnostics
    assert told is not None
    assert told.problem({"anchor", "medicine"}, ("anchor", "expert:medicine", "composite"), layers=2) is None
    assert set(told.model_dump()) == {"tokens", "layers", "positions"}
    assert sum(told.positions["expert:medicine"].nats) == pytest.approx(report.rows["expert:medicine"].nats)


def test_every_expert_set_is_another_answer(make_home, coordinator, tmp_path: Path) -> None:
    home = make_home()
    digest = composite_of(packed_of(home), home, tmp_path / "composite")
    coordinator.published[digest] = tmp_path / "composite"
    plain, sets = (evaluate(home, digest, sets=wanted).open(EvaluationReport) for wanted in (False, True))
    assert plain == sets, "of one expert, every set has a row already"
    assert len(list((home.work / "evaluations").iterdir())) == 2


def test_an_evaluation_is_answered_again_without_scoring(make_home, coordinator, tmp_path: Path) -> None:
    home = make_home()
    digest = composite_of(packed_of(home), home, tmp_path / "composite")
    coordinator.published[digest] = tmp_path / "composite"
    lines: list[str] = []
    first = evaluate(home, digest, on_progress=lambda share, line: lines.append(line))
    assert "scoring soup" in lines
    lines.clear()
    assert evaluate(home, digest, on_progress=lambda share, line: lines.append(line)) == first
    assert lines == []


def test_an_altered_composite_is_refused_and_fetched_anew(make_home, coordinator, tmp_path: Path) -> None:
    home = make_home()
    digest = composite_of(packed_of(home), home, tmp_path / "composite")
    coordinator.published[digest] = tmp_path / "composite"
    evaluate(home, digest)
    router = home.composite(digest) / "router.safetensors"
    router.write_bytes(router.read_bytes()[:-4] + b"abcd")
    (answer,) = (home.work / "evaluations").iterdir()
    answer.unlink()
    with pytest.raises(AssemblyError, match="router"):
        evaluate(home, digest)
    evaluate(home, digest)


def test_a_home_without_an_anchor_fetches_it(make_home, coordinator, federation) -> None:
    home = make_home()
    home.anchor.unlink()
    coordinator.published[home.charter.anchor.bundle] = federation.anchor
    assert packed_of(home).contribution.anchor == home.charter.anchor.digest
    assert not home.anchor.is_symlink()


def test_an_unpublished_composite_is_refused(make_home, coordinator) -> None:
    with pytest.raises(TransferRefused):
        evaluate(make_home(), "sha256:" + "2" * 64)


def test_packing_refuses_what_is_not_finite(make_home) -> None:
    from motet.client.training import train
    from motet.protocols.errors import CodecError

    home = make_home()
    material = prepare(home)
    made = train(material, home.config.training, home.work / "run")
    assert made is not None
    next(iter(made.ffn.values()))[0, 0] = float("nan")
    with pytest.raises(CodecError, match="finite"):
        pack(made, material, home)
    assert packed_contributions(home) == []


@pytest.mark.parametrize("word", ["medicine", "sha256:../../keys", "sha256:" + "A" * 64, ""])
def test_a_digest_that_is_none_is_named(make_home, word: str) -> None:

    home = make_home()
    with pytest.raises(ConfigurationError, match=r"digest|pattern"):
        pull(home, word)
    with pytest.raises(ConfigurationError, match=r"digest|pattern"):
        sign_withdrawal(home, word)
    with pytest.raises(ConfigurationError, match="at most 500"):
        sign_withdrawal(home, "sha256:" + "0" * 64, reason="x" * 501)


def test_a_second_pull_of_a_composite_waits_for_the_first(make_home) -> None:
    home = make_home()
    packed = packed_of(home)
    (home.path / "composites").mkdir()
    digest = composite_of(packed, home, home.path / "composites" / "made")
    (home.path / "composites" / "made").rename(home.composite(digest))
    lock = home.composite(digest).with_name(f".{home.composite(digest).name}.lock")
    with ThreadPoolExecutor(1) as pool:
        with locked(lock):
            second = pool.submit(pull, home, digest)
            with pytest.raises(TimeoutError):
                second.result(0.3)
        assert second.result(20) == home.composite(digest)
