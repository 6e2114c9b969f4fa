"""Low-rank experts at the coordinator's: what is admitted, what the store keeps, what is assembled and scored."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from motet.coordinator.ablation import ablate
from motet.coordinator.admission import examine_manifest, examine_update
from motet.coordinator.composite_plan import plan
from motet.coordinator.federation import Federation
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.inspection import read_findings
from motet.coordinator.intake import Intake
from motet.coordinator.public_tokens import read_public_tokens
from motet.moe import Expert, LowRankExpert, compose
from motet.moe.lowrank import dense_ffn, read_lowrank_update, read_stored
from motet.moe.prefix import evidence_of
from motet.moe.scoring import bits_per_byte
from motet.protocols.charter import Charter, ExpertRules
from motet.protocols.codec import METHODS, CodecSettings
from motet.protocols.composite_manifest import verify_composite
from motet.protocols.contribution import LOWRANK_METHODS, CodecRecord, Contribution
from motet.protocols.errors import AdmissionRefused, AssemblyError
from motet.protocols.expert_files import factor_specs, update_specs
from motet.protocols.receipts import Receipt
from motet.protocols.tensor_files import TensorReader, TensorSpec

WriteUpdate = Callable[..., Path]
Admit = Callable[..., str]
RANK = 3


@pytest.fixture
def update(home: CoordinatorHome, write_update: WriteUpdate, tmp_path: Path) -> Path:
    return write_update(tmp_path / "update.motetup", specs=update_specs(home.anchor_manifest, RANK))


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(AdmissionRefused) as caught:
        call()
    assert str(caught.value).startswith(f"refused ({caught.value.reason}): ")
    return caught.value.reason


def examine(home: CoordinatorHome, update: Path, contribution: Contribution, charter: Charter | None = None) -> None:
    """What an admission decides, without the child process."""
    wanted = update_specs(home.anchor_manifest, contribution.rank)
    findings = read_findings(update, wanted, read_public_tokens(home.public_tokens_file))
    examine_update(contribution, findings, wanted, charter or home.charter)


def signed_by(owner: object, home: CoordinatorHome, update: Path, **changes: object) -> object:
    return owner.manifest(home, update, **({"kind": "lowrank", "rank": RANK} | changes))


@pytest.mark.parametrize("method", LOWRANK_METHODS)
def test_a_good_one_passes(
    home: CoordinatorHome, medicine: object, write_update: WriteUpdate, tmp_path: Path, method: str
) -> None:
    specs = update_specs(home.anchor_manifest, RANK)
    update = write_update(tmp_path / "u", specs=specs, settings=CodecSettings(method=method))
    signed = signed_by(medicine, home, update)
    contribution = examine_manifest(signed, home.ledger.standing(), home.charter)
    assert (contribution.kind, contribution.rank) == ("lowrank", RANK)
    examine(home, update, contribution)


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(LOWRANK_METHODS)))
def test_a_method_that_leaves_values_out_is_refused(
    home: CoordinatorHome, medicine: object, update: Path, method: str
) -> None:
    signed = signed_by(medicine, home, update, codec=CodecRecord(method=method))
    assert reason_of(lambda: examine_manifest(signed, home.ledger.standing(), home.charter)) == "wrong-method"


@pytest.mark.parametrize(
    ("rules", "reason", "message"),
    [
        ({"max_rank": 2}, "wrong-rank", "saw rank 3, wanted at most 2"),
        ({"kinds": ("full",)}, "wrong-kind", "saw a lowrank expert, wanted one of full"),
    ],
)
def test_rank_and_kind_are_held_to_the_charter(
    home: CoordinatorHome, medicine: object, update: Path, rules: dict[str, object], reason: str, message: str
) -> None:
    charter = home.charter.model_copy(update={"experts": ExpertRules(**rules)})
    signed = signed_by(medicine, home, update, charter=charter.digest)
    with pytest.raises(AdmissionRefused, match=message) as caught:
        examine_manifest(signed, home.ledger.standing(), charter)
    assert caught.value.reason == reason


def wrong_shape(specs: list[TensorSpec]) -> list[TensorSpec]:
    changed = TensorSpec(name=specs[1].name, dtype="BF16", shape=(specs[1].shape[0] + 1, specs[1].shape[1]))
    return [specs[0], changed, *specs[2:]]


@pytest.mark.parametrize(
    ("specs_of", "reason"),
    [
        (lambda manifest: update_specs(manifest), "wrong-kind"),
        (lambda manifest: update_specs(manifest, RANK + 1), "wrong-shape"),
        (lambda manifest: wrong_shape(update_specs(manifest, RANK)), "wrong-shape"),
        (lambda manifest: update_specs(manifest, RANK)[1:], "missing-tensor"),
        (lambda manifest: [*update_specs(manifest, RANK), manifest.ffn()[0]], "extra-tensor"),
    ],
    ids=["full", "rank", "shape", "missing", "extra"],
)
def test_other_tensors_than_the_manifest_promises_are_refused(
    home: CoordinatorHome,
    medicine: object,
    write_update: WriteUpdate,
    tmp_path: Path,
    specs_of: Callable[..., list[TensorSpec]],
    reason: str,
) -> None:
    update = write_update(tmp_path / "u", specs=specs_of(home.anchor_manifest))
    contribution = signed_by(medicine, home, update).open(Contribution)
    assert reason_of(lambda: examine(home, update, contribution)) == reason


def test_factors_under_a_full_experts_manifest_are_refused(
    home: CoordinatorHome, medicine: object, update: Path
) -> None:
    contribution = medicine.manifest(home, update).open(Contribution)
    assert reason_of(lambda: examine(home, update, contribution)) == "wrong-kind"


@pytest.mark.parametrize(("poison", "reason"), [(np.nan, "not-finite"), (np.inf, "not-finite"), (2e4, "out-of-range")])
def test_values_that_are_no_factors_are_refused(
    home: CoordinatorHome, medicine: object, write_update: WriteUpdate, tmp_path: Path, poison: float, reason: str
) -> None:
    specs = update_specs(home.anchor_manifest, RANK)
    last = next(number for number, spec in enumerate(specs) if spec.name.endswith("lora_B.weight"))
    ordered = [*specs[:last], *specs[last + 1 :], specs[last]]
    update = write_update(tmp_path / "u", specs=ordered, poison=poison)
    contribution = signed_by(medicine, home, update).open(Contribution)
    assert reason_of(lambda: examine(home, update, contribution)) == reason


@pytest.mark.slow
def test_admitted_and_kept_low_rank(
    home: CoordinatorHome, medicine: object, write_update: WriteUpdate, tmp_path: Path
) -> None:
    specs = update_specs(home.anchor_manifest, RANK)
    update = write_update(tmp_path / "u", specs=specs, settings=CodecSettings(method="int8"))
    signed, intake = signed_by(medicine, home, update), Intake(home)
    contribution = signed.open(Contribution)
    receipt = intake.admit(signed, update, 1).open(Receipt, by=home.charter.coordinator)
    assert (receipt.status, receipt.message) == ("admitted", None)
    path = intake.expert_file(contribution.digest)
    with TensorReader(path) as reader:
        assert {spec.name: spec for spec in reader.specs} == {spec.name: spec for spec in specs}
    kept = read_stored(path, home.anchor, name="medicine", contribution=contribution.digest)
    sent = read_lowrank_update(update, home.anchor, name="medicine", contribution=contribution.digest)
    assert isinstance(kept, LowRankExpert)
    for name, factors in sent.factors.items():
        assert torch.equal(kept.factors[name].a, factors.a)
        assert torch.equal(kept.factors[name].b, factors.b)


@pytest.fixture
def federation(home: CoordinatorHome, admit_quickly: Admit, make_owner: Callable[[str], object]) -> Federation:
    """A full expert and two low-rank ones."""
    for seed, (name, rank) in enumerate({"news": 3, "law": None, "code": 2}.items(), start=1):
        owner = make_owner(name)
        home.enrol(owner.request(home))
        admit_quickly(owner, seed=seed, rank=rank)
    return Federation(home)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_mixed_composite_is_what_its_members_are(federation: Federation) -> None:
    composite = federation.assemble()
    manifest = verify_composite(composite.path)
    assert {member.name: member.rank for member in manifest.members} == {"news": 3, "law": None, "code": 2}
    assert manifest.digest == composite.digest
    config = json.loads((composite.path / "config.json").read_text())
    assert config["expert_ranks"] == [None, *(member.rank for member in manifest.members)]

    loaded, report = AutoModelForCausalLM.from_pretrained(composite.path, output_loading_info=True)
    assert not any(report.values())
    anchor, routing = federation.home.anchor, federation.charter.routing
    store = Intake(federation.home)
    experts = [
        read_stored(store.expert_file(each.contribution), anchor, name=each.name, contribution=each.contribution)
        for each in manifest.members
    ]
    names = [each.name for each in experts]
    priors = {"anchor": routing.log_prior_anchor} | dict.fromkeys(names, routing.log_prior_expert)
    in_process = compose(anchor.model(), experts, log_priors=priors, evidence=evidence_of(routing))
    state, expected = loaded.state_dict(), in_process.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, in_process(ids).logits)
    assert {each.name: (each.kind, each.rank) for each in composite.experts} == {
        "anchor": ("anchor", None),
        "news": ("lowrank", 3),
        "law": ("full", None),
        "code": ("lowrank", 2),
    }
    assert composite.experts == loaded.experts
    taken = sum(path.stat().st_size for path in composite.path.glob("*.safetensors"))
    assert 0.8 * taken < plan(federation, ()).native_bytes < taken


def test_a_low_rank_expert_that_left_leaves_no_byte_behind(
    federation: Federation, home: CoordinatorHome, admit_quickly: Admit, make_owner: Callable[[str], object]
) -> None:
    before = federation.assemble()
    owner = make_owner("verse")
    home.enrol(owner.request(home))
    admit_quickly(owner, seed=9, rank=4)
    grown = Federation(home)
    assert grown.assemble().digest != before.digest
    again = grown.assemble(("verse",))
    assert again.digest == before.digest
    assert contents(again.path) == contents(before.path)
    full_only = grown.assemble(("verse", "news", "code"))
    assert "expert_ranks" not in json.loads((full_only.path / "config.json").read_text())
    assert "rank" not in json.loads((full_only.path / "composite.json").read_text())["members"][0]


def test_a_damaged_factor_is_found(federation: Federation) -> None:
    composite = federation.assemble()
    number = next(each for each, size in enumerate(composite.experts) if size.name == "news")
    path = composite.path / f"expert-{number:05d}.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(AssemblyError, match="saw other content"):
        verify_composite(composite.path)


def test_it_is_scored_as_its_expansion_is(federation: Federation, tmp_path: Path) -> None:
    composite = federation.assemble()
    rows = {row: bits_per_byte(score) for row, score in federation.score_public(composite.digest).items()}
    assert {"expert:news", "soup", "composite", "composite-without:code"} <= rows.keys()
    text = tmp_path / "law.jsonl"
    text.write_text(json.dumps({"text": "Whereas the party of the first part shall."}) + "\n")
    found = {trial.experts: trial for trial in ablate(federation, {"law": text}, check=1).trials}
    for name in ("news", "law", "code"):
        assert found[(name,)].predicted["public"] == pytest.approx(rows[f"expert:{name}"], rel=1e-5)
    everyone = found[("code", "law", "news")]
    assert everyone.predicted["public"] == pytest.approx(rows["soup"], rel=1e-5)
    assert everyone.assembled["public"] == pytest.approx(rows["composite"], rel=1e-5)
    assert rows["expert:news"] != pytest.approx(rows["anchor"], rel=1e-4)


def test_the_expansion_of_a_stored_expert_is_its_definition(federation: Federation) -> None:
    anchor, intake = federation.home.anchor, Intake(federation.home)
    own = anchor.ffn()
    for digest, each in federation.admitted().items():
        expert = read_stored(intake.expert_file(digest), anchor, name=each.name, contribution=digest)
        dense = dense_ffn(expert, own)
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in dense.items()} == {
            name: (tensor.shape, tensor.dtype) for name, tensor in own.items()
        }
        if isinstance(expert, Expert):
            continue
        assert expert.rank == each.rank
        name, factors = next(iter(expert.factors.items()))
        wanted = own[name].double() + factors.b.double() @ factors.a.double()
        assert torch.allclose(dense[name].double(), wanted, rtol=2.0**-8, atol=1e-6)
        assert not torch.allclose(dense[name].double(), own[name].double(), rtol=0.1, atol=1e-2)
        names = {spec.name for spec in factor_specs(anchor.manifest, expert.rank)}
        with TensorReader(intake.expert_file(digest)) as reader:
            assert names <= {spec.name for spec in reader.specs}
