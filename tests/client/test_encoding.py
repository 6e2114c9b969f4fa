"""From a trained expert to an encoded one: the scale that is tuned, the figures that are told, later versions."""

import math
from pathlib import Path

import pytest
import torch

from motet.client.contribute import contribute, describe, send, withdraw
from motet.client.encoding import Yardstick, gain_kept
from motet.client.outbox import packed_contributions
from motet.client.owner import CodecConfig
from motet.client.preparation import prepare
from motet.client.training import train
from motet.client.tuning import EVALUATIONS, HIGHEST, LOWEST, TUNING_DOCUMENTS, split, tuned
from motet.client.versions import Version, Versions, forget_start
from motet.client.worker import make_contribution
from motet.moe.experts import read_update, stored_tensors, swap_ffn
from motet.moe.scoring import bits_per_byte, score
from motet.protocols.charter import CodecRules
from motet.protocols.codec import UpdateReader
from motet.protocols.errors import ConfigurationError, StorageError
from motet.protocols.expert_files import materialise_file
from motet.protocols.split import is_held_out

from .conftest import edit, packed_of, sentences


@pytest.mark.parametrize("best", [1.3, 1.7, 2.0, 3.4])
def test_the_search_finds_the_least_loss(best: float) -> None:
    asked: list[float] = []

    def loss(factor: float) -> float:
        asked.append(factor)
        return abs(math.log(factor / best))

    factor, least = tuned(loss, around=2.0, evaluations=10)
    assert factor == pytest.approx(best, rel=0.05)
    assert least == min(loss(each) for each in asked[:10])
    assert len(asked) == 20  # ten by the search, ten by the line above


def test_documents_are_tuned_on_or_reported_on_never_both() -> None:
    documents = [f"document {number}" for number in range(300)]
    tuning, report = split(documents)
    assert sorted(tuning + report) == sorted(documents)
    assert len(tuning) == TUNING_DOCUMENTS
    assert split(documents[::-1]) == (tuning, report)
    assert [len(part) for part in split(documents[:7])] == [3, 4]
    assert split(["one"]) == ([], ["one"])


def test_owner_and_charter_choose_the_method() -> None:
    rules = CodecRules(methods=("ternary", "lossless"), density=0.1)
    assert CodecConfig().settings(rules).model_dump()["method"] == "ternary"
    assert CodecConfig().settings(rules).density == 0.1
    assert CodecConfig(method="lossless").settings(rules).method == "lossless"
    assert CodecConfig(density=0.5).settings(rules).density == 0.5
    with pytest.raises(ConfigurationError, match=r"saw the method 'int4' .* wanted one .* ternary, lossless"):
        CodecConfig(method="int4").settings(rules)


def test_the_gain_that_survives() -> None:
    assert gain_kept({"anchor": 4.0, "trained": 3.0, "expert": 3.1}) == 0.9
    assert gain_kept({"anchor": 4.0, "trained": 3.0, "expert": 2.9}) == 1.1
    assert gain_kept({"anchor": 3.0, "trained": 3.0, "expert": 3.0}) is None


@pytest.mark.parametrize("method", ["ternary", "levels", "int4", "lossless"])
def test_figures_are_of_text_that_nothing_was_chosen_on(method: str, make_home) -> None:
    home = make_home(codec={"method": method, "density": 0.1}, training={"steps": 20})
    packed, material = packed_of(home), prepare(home)
    tuning, report = split(material.corpus.held_out)
    texts = list(material.corpus.held_out) if method == "lossless" else report
    record = packed.contribution.codec
    assert record.method == method
    assert record.tuning_documents == (0 if method == "lossless" else len(tuning))
    assert (record.scale_factor is None) == (method in ("int4", "lossless"))
    model = material.anchor.model(torch.float32)
    expert = read_update(packed.update, material.anchor, name="x", contribution="")
    with swap_ffn(model, expert.ffn):
        saw = bits_per_byte(score(model, material.anchor.tokenizer(), texts, sequence_length=32))
    figures = packed.contribution.bits_per_byte
    assert figures["expert"] == pytest.approx(saw, abs=1e-5)
    assert record.gain_kept == gain_kept(figures)
    assert f"{100 * record.gain_kept:.1f} % of the expert's gain kept" in "\n".join(describe(packed, home))


def test_the_guess_is_tried_and_stays_unless_beaten() -> None:
    asked: list[float] = []

    def flat(factor: float) -> float:
        asked.append(factor)
        return 0.0 if factor == pytest.approx(2.5) else 1.0

    assert tuned(flat, around=2.5) == (pytest.approx(2.5), 0.0)
    assert len(asked) == EVALUATIONS
    assert all(2.5 / 1.6 <= factor <= 2.5 * 1.8 for factor in asked)


def test_untuned_scales_are_the_guess(make_home) -> None:
    records = {}
    for tune in (True, False):
        settings = {"method": "ternary", "density": 0.05, "tune": tune}
        records[tune] = packed_of(make_home(f"tune-{tune}".lower(), codec=settings)).contribution.codec
    assert records[False].scale_factor > 1.0
    assert LOWEST <= records[True].scale_factor / records[False].scale_factor <= HIGHEST


def test_the_factor_is_in_the_header(make_home) -> None:
    home = make_home(codec={"method": "ternary", "balance": 0.0})
    packed, material = packed_of(home), prepare(home)
    factor = packed.contribution.codec.scale_factor
    trained = train(material, home.config.training, home.work / "training" / home.charter.digest[7:23])
    for name, tensor in trained.ffn.items():
        with UpdateReader(packed.update) as update:
            change = torch.from_numpy(update.tensor(name))
        difference = (tensor - material.anchor.tensor(name).float()).bfloat16().float()
        kept = change != 0
        assert change[kept].abs().max() == pytest.approx(float(difference[kept].abs().mean()) * factor, rel=1e-5)


def test_a_later_version_is_the_change_since_the_receipt(make_home, coordinator) -> None:
    home = make_home(codec={"method": "ternary", "successive": "always"}, training={"steps": 20})
    assert packed_of(home).contribution.base is None
    edit(home, "steps = 20", "steps = 22")
    second = packed_of(home)
    assert second.contribution.base is None  # no receipt yet
    send(home, second)
    edit(home, "steps = 22", "steps = 24")
    third = packed_of(home)
    assert third.contribution.base == second.digest
    assert third.contribution.version == 3
    assert f"the change to version {second.digest}" in "\n".join(describe(third, home))
    edit(home, 'successive = "always"', 'successive = "never"')
    assert packed_of(home).contribution.base is None
    edit(home, 'successive = "never"', 'successive = "always"')
    withdraw(home, second.digest)
    assert packed_of(home).contribution.base is None


def test_by_itself_the_better_of_both_is_chosen(make_home, coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are given here, so that it is known which is less."""
    for better, chosen in ((None, False), (1, True)):
        home = make_home(f"better-{better}".lower(), codec={"method": "ternary", "density": 0.05})
        first = packed_of(home)
        send(home, first)
        edit(home, "steps = 6", "steps = 7")
        with monkeypatch.context() as patch:
            patch.setattr(
                Yardstick,
                "tuning_loss",
                lambda self, update, previous, factor, better=better: float((previous and previous.number) != better),
            )
            assert packed_of(home).contribution.base == (first.digest if chosen else None)


def test_a_refused_base_is_not_built_on_again(make_home, coordinator) -> None:
    home = make_home(codec={"method": "ternary", "successive": "always"})
    send(home, packed_of(home))
    edit(home, "steps = 6", "steps = 7")
    second = packed_of(home)
    assert second.contribution.base is not None
    coordinator.verdict, coordinator.reason = "refused", "wrong-base"
    assert send(home, second).verdict.status == "refused"
    coordinator.verdict = "admitted"
    third = packed_of(home)
    assert third.contribution.base is None
    assert send(home, third).verdict.status == "admitted"
    assert packed_of(home).digest == third.digest


def test_a_base_withdrawn_before_sending_is_packed_anew(make_home, coordinator) -> None:
    home = make_home(codec={"method": "ternary", "successive": "always"})
    first = packed_of(home)
    send(home, first)
    edit(home, "steps = 6", "steps = 7")
    assert packed_of(home).contribution.base == first.digest
    withdraw(home, first.digest)
    assert packed_of(home).contribution.base is None


def test_a_version_that_was_replaced_is_no_base(make_home, coordinator) -> None:
    home = make_home(codec={"method": "ternary", "successive": "always"})
    send(home, packed_of(home))
    edit(home, "steps = 6", "steps = 7")
    second = packed_of(home)
    edit(home, "steps = 7", "steps = 8")
    packed_of(home)
    send(home, second)  # the older of the two that wait; what a later one needs of it is no longer kept
    edit(home, "steps = 8", "steps = 9")
    assert packed_of(home).contribution.base is None


def test_a_receipt_that_comes_while_packing_loses_nothing(make_home, coordinator, monkeypatch) -> None:
    home = make_home(codec={"method": "ternary", "successive": "always"})
    first = packed_of(home)
    send(home, first)
    edit(home, "steps = 6", "steps = 7")
    figures = Yardstick.figures

    def withdrawn_meanwhile(self, *arguments):
        withdraw(home, first.digest)
        return figures(self, *arguments)

    monkeypatch.setattr(Yardstick, "figures", withdrawn_meanwhile)
    assert packed_of(home).contribution.base == first.digest


def test_a_disk_too_small_for_later_versions_stops_no_contribution(make_home, monkeypatch, caplog) -> None:
    def full(*arguments, **options) -> None:
        raise StorageError("cannot write: no space left")

    monkeypatch.setattr("motet.client.versions.materialise_file", full)
    home = make_home(codec={"method": "ternary"})
    packed = packed_of(home)
    assert packed.update.exists()
    assert "the next version will travel as the change to the anchor" in caplog.text
    assert Versions.of(home, prepare(home).anchor).all() == []
    assert not list((home.work / "versions").rglob("*.safetensors"))


def test_who_never_sends_changes_keeps_no_versions(make_home) -> None:
    home = make_home(codec={"method": "ternary", "successive": "never"})
    packed_of(home)
    assert not (home.work / "versions").exists()


def test_packing_stops_when_told(make_home) -> None:
    home, told = make_home(codec={"method": "ternary"}), list[str]()

    def report(share: float, line: str) -> None:
        told.append(line)

    def stop() -> bool:
        return any("trying scales" in line for line in told)

    assert make_contribution(home, report=report, should_stop=stop) is None
    assert sum("trying scales" in line for line in told) == 1
    assert packed_contributions(home) == []
    assert packed_of(home).contribution.version == 1


def test_one_held_out_document_chooses_nothing(make_home, coordinator) -> None:
    apart = {True: [], False: []}
    for text in sentences(60):
        apart[is_held_out(text, 0.1, 0)].append(text)
    home = make_home(texts=[*apart[False][:10], apart[True][0]], codec={"method": "ternary"})
    assert len(prepare(home).corpus.held_out) == 1
    send(home, packed_of(home))
    edit(home, "steps = 6", "steps = 7")
    record = packed_of(home).contribution
    assert record.base is None
    assert record.codec.tuning_documents == 0
    assert record.codec.scale_factor > 1


def test_both_sides_hold_the_same_bits_of_a_later_version(make_home, coordinator, tmp_path: Path) -> None:
    home = make_home(codec={"method": "lossless", "successive": "always"}, training={"steps": 20})
    first = packed_of(home)
    send(home, first)
    edit(home, "steps = 20", "steps = 24")
    second, material = packed_of(home), prepare(home)
    assert second.contribution.base == first.digest
    manifest, anchor = material.anchor.manifest, material.anchor
    with stored_tensors(anchor) as stored:
        materialise_file(first.update, manifest, stored, tmp_path / "first")
    versions = {version.number: version for version in Versions.of(home, anchor).all()}
    assert (tmp_path / "first").read_bytes() == versions[1].base.file.read_bytes()
    with stored_tensors(anchor, versions[1].base) as stored:
        materialise_file(second.update, manifest, stored, tmp_path / "second", base=first.digest)
    assert (tmp_path / "second").read_bytes() == versions[2].base.file.read_bytes()


def test_packing_again_after_the_receipt_is_no_new_version(make_home, coordinator) -> None:
    home = make_home(codec={"method": "ternary"})
    first = packed_of(home)
    send(home, first)
    assert packed_of(home).digest == first.digest
    assert len(packed_contributions(home)) == 1


@pytest.mark.parametrize("method", ["ternary", "lossless"])
def test_the_residual_is_what_the_encoding_left_out(method: str, make_home, coordinator) -> None:
    home = make_home(codec={"method": method, "density": 0.1}, training={"steps": 20})
    packed, material = packed_of(home), prepare(home)
    anchor = material.anchor
    trained = train(material, home.config.training, home.work / "training" / home.charter.digest[7:23])
    assert trained is not None
    (version,) = Versions.of(home, anchor).all()
    factor = packed.contribution.codec.scale_factor or 1.0
    with version.sent(anchor) as sent, UpdateReader(packed.update, factor=1 / factor) as update:
        for spec in anchor.manifest.ffn():
            change = torch.from_numpy(update.tensor(spec.name))
            wanted = anchor.tensor(spec.name).float() + change
            found = sent(spec, 0, change.numel()).reshape(spec.shape)
            step = (trained.ffn[spec.name].abs().max() + change.abs().max()) * 2**-8  # both were rounded to bfloat16
            assert (found - wanted).abs().max() <= step
    restored = version.trained(anchor)
    for name, tensor in trained.ffn.items():
        torch.testing.assert_close(restored[name], tensor, rtol=0, atol=float(tensor.abs().max()) * 2**-8)


def test_a_later_version_carries_what_the_first_left_out(make_home, coordinator) -> None:
    settings = {"method": "ternary", "density": 0.05, "tune": False, "successive": "always"}
    home = make_home(codec=settings, training={"steps": 20})
    first, anchor = packed_of(home), prepare(home).anchor
    send(home, first)
    edit(home, "steps = 20", "steps = 21")
    assert packed_of(home).contribution.base == first.digest

    def left_out(version: Version) -> float:
        trained = version.trained(anchor)
        with version.sent(anchor) as sent:
            return sum(
                float((trained[spec.name].reshape(-1) - sent(spec, 0, math.prod(spec.shape))).norm() ** 2)
                for spec in anchor.manifest.ffn()
            )

    one, two = (left_out(version) for version in Versions.of(home, anchor).all())
    assert two < one


def test_training_goes_on_from_the_last_admitted_version(make_home, coordinator) -> None:
    settings = {"method": "ternary", "successive": "always"}
    home = make_home(codec=settings, training={"steps": 20, "start": "latest"})
    first = packed_of(home)
    assert prepare(home).start is None
    contribute(home, first)
    material = prepare(home)
    assert material.start is not None
    assert material.start.contribution == first.digest
    second = packed_of(home)
    assert (second.contribution.version, second.contribution.base) == (2, first.digest)
    figures = first.contribution.bits_per_byte, second.contribution.bits_per_byte
    assert figures[1]["trained"] < figures[0]["trained"]
    contribute(home, second)
    third = packed_of(home)
    assert (third.contribution.version, third.contribution.base) == (3, second.digest)
    assert [version.number for version in Versions.of(home, material.anchor).all()] == [2, 3]


def test_a_receipt_does_not_turn_a_training_into_another(make_home, coordinator) -> None:
    """Killed between the receipt and the end of the job, a worker finds the same training done."""
    home = make_home(codec={"method": "ternary"}, training={"start": "latest"})
    first = packed_of(home)
    send(home, first)
    assert packed_of(home).digest == first.digest
    forget_start(home)
    assert packed_of(home).contribution.version == 2
