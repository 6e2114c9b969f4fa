"""From a trained expert to an encoded one: the scale that is tuned, the figures that are told, later versions."""

import math
from pathlib import Path

import pytest
import torch

from motet.client.contribute import describe, send, withdraw
from motet.client.encoding import gain_kept
from motet.client.owner import CodecConfig, OwnerHome
from motet.client.packing import Packed, packed_contributions
from motet.client.preparation import prepare
from motet.client.training import train
from motet.client.tuning import TUNING_DOCUMENTS, split, tuned
from motet.client.versions import Version, Versions
from motet.client.worker import make_contribution
from motet.moe.experts import read_update, stored_tensors, swap_ffn
from motet.moe.scoring import bits_per_byte, score
from motet.protocols.charter import CodecRules
from motet.protocols.codec import UpdateReader
from motet.protocols.errors import ConfigurationError
from motet.protocols.expert_files import materialise_file


def packed_of(home: OwnerHome) -> Packed:
    packed = make_contribution(OwnerHome.load(home.path))
    assert packed is not None
    return packed


def edit(home: OwnerHome, before: str, after: str) -> None:
    path = home.path / "owner.toml"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


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
    assert f"{100 * record.gain_kept:.1f} % of the expert's gain kept" in "\n".join(describe(packed))


def test_a_tuned_scale_is_no_worse_than_the_guess(make_home) -> None:
    kept, figures = {}, {}
    for tune in (True, False):
        settings = {"method": "ternary", "density": 0.05, "tune": tune}
        record = packed_of(make_home(f"tune-{tune}".lower(), codec=settings, training={"steps": 30})).contribution.codec
        kept[tune] = record.gain_kept
        assert record.scale_factor is not None
        figures[tune] = record.scale_factor
    assert kept[True] >= kept[False]
    assert figures[True] != figures[False]


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
    assert f"the change to version {second.digest}" in "\n".join(describe(third))
    edit(home, 'successive = "always"', 'successive = "never"')
    assert packed_of(home).contribution.base is None
    edit(home, 'successive = "never"', 'successive = "always"')
    withdraw(home, second.digest)
    assert packed_of(home).contribution.base is None


def test_by_itself_the_better_of_both_is_chosen(make_home, coordinator) -> None:
    figures = {}
    for successive in ("auto", "always", "never"):
        settings = {"method": "ternary", "density": 0.05, "successive": successive}
        home = make_home(successive, codec=settings, training={"steps": 20})
        send(home, packed_of(home))
        edit(home, "steps = 20", "steps = 22")
        figures[successive] = packed_of(home).contribution
    chosen = figures["never"] if figures["auto"].base is None else figures["always"]
    assert figures["auto"].codec == chosen.codec
    assert figures["auto"].bits_per_byte == chosen.bits_per_byte


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
            step = trained.ffn[spec.name].abs().max() * 2**-8
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
    assert two < 0.95 * one


def test_training_goes_on_from_the_last_admitted_version(make_home, coordinator) -> None:
    home = make_home(codec={"method": "ternary"}, training={"steps": 20, "start": "latest"})
    first = packed_of(home)
    assert prepare(home).start is None
    send(home, first)
    material = prepare(home)
    assert material.start is not None
    assert material.start.contribution == first.digest
    second = packed_of(home)
    assert second.contribution.version == 2
    figures = first.contribution.bits_per_byte, second.contribution.bits_per_byte
    assert figures[1]["trained"] < figures[0]["trained"]
    send(home, second)
    assert [version.number for version in Versions.of(home, material.anchor).all()] == [1, 2]
    third = packed_of(home)
    assert third.contribution.version == 3
    assert [version.number for version in Versions.of(home, material.anchor).all()] == [2, 3]
