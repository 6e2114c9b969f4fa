"""A tuned router: what is fitted and what is not, that it is better where it was tuned, and whom it holds for."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from motet.cli import build
from motet.coordinator.assembly import Member, TunedRouter, assemble, verify_composite
from motet.coordinator.composite_plan import plan
from motet.coordinator.composites import make
from motet.coordinator.federation import Federation
from motet.coordinator.founding import init
from motet.coordinator.home import PUBLIC_TEXT_FILE, CoordinatorHome
from motet.coordinator.public_text import PublicText
from motet.coordinator.tuned_composites import plan_tuning
from motet.coordinator.tuning import tune
from motet.moe.composite import MotetForCausalLM, router_tensor_names
from motet.moe.scoring import bits_per_byte, score
from motet.protocols.charter import Addresses, RoutingRules
from motet.protocols.composite_manifest import CompositeManifest, RoutingPolicy, Tuning, membership_of
from motet.protocols.errors import (
    AssemblyError,
    ConfigurationError,
    DataError,
    DocumentError,
    ExpertSetError,
    TrainingError,
)
from motet.protocols.split import document_id

Admit = Callable[..., str]
POLICY = RoutingPolicy(kind="token", log_prior_anchor=0.25)
LETTERS = {"medicine": "abcdefgh", "law": "nopqrstu"}


def documents(letters: str, count: int = 12, *, seed: int = 0) -> list[str]:
    draw = random.Random(f"{letters}{seed}")
    return ["".join(draw.choices(letters, k=60)) for _ in range(count)]


PROXIES = {name: documents(letters) for name, letters in LETTERS.items()}
PLAIN = documents("ijklmvwxyz", 20)


@pytest.fixture(scope="session")
def home_template(anchor_with_statistics: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation that routes token by token and asks for proxies; its public text holds what resembles members'."""
    folder = tmp_path_factory.mktemp("tuned")
    texts = [*PLAIN, *PROXIES["medicine"], *PROXIES["law"]]
    (folder / "public.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    init(
        folder / "home",
        name="quickstart",
        anchor_directory=anchor_with_statistics,
        public_text=folder / "public.jsonl",
        addresses=Addresses(data_plane="127.0.0.1:9443", flower="localhost:8000"),
        routing=RoutingRules(kind="token", rows="lda", proxies=20, projection_seed=3),
    )
    return folder / "home"


def ids_of(home: CoordinatorHome, name: str) -> tuple[str, ...]:
    known = PublicText(home.anchor_directory / PUBLIC_TEXT_FILE).train_ids()
    return tuple(sorted({document_id(text) for text in PROXIES[name]} & known))


@pytest.fixture
def admit(home: CoordinatorHome, admit_quickly: Admit, monkeypatch: pytest.MonkeyPatch) -> Admit:
    """`admit(owner, seed, proxies=True)`: an expert in the store, whose manifest names its owner's proxies or none."""

    def admitting(owner: object, seed: int, *, proxies: bool = True, version: int = 1) -> str:
        kind, named = type(owner), ids_of(home, owner.name) if proxies else ()
        signs = kind.manifest
        monkeypatch.setattr(kind, "manifest", lambda *each, **rest: signs(*each, **(rest | {"proxies": named})))
        try:
            return admit_quickly(owner, seed=seed, version=version)
        finally:
            monkeypatch.setattr(kind, "manifest", signs)

    return admitting


@pytest.fixture
def members(admit: Admit, medicine: object, law: object) -> dict[str, str]:
    return {"medicine": admit(medicine, 1), "law": admit(law, 2)}


@pytest.fixture
def federation(home: CoordinatorHome, members: dict[str, str]) -> Federation:
    return Federation(home)


@pytest.fixture
def composite(federation: Federation) -> Path:
    return federation.assemble().path


def load(composite: Path) -> MotetForCausalLM:
    model = MotetForCausalLM.from_pretrained(composite, dtype=torch.float32)
    model.eval()
    return model


def tuned_from(
    federation: Federation, composite: Path, **changes: object
) -> tuple[MotetForCausalLM, dict[str, torch.Tensor]]:
    model = load(composite)
    settings = {"steps": 5, "seed": 0, "sequence_length": 24, "batch": 6, "learning_rate": 0.05} | changes
    return model, tune(model, federation.home.anchor.tokenizer(), PROXIES, PLAIN, **settings)


def test_only_the_router_is_fitted_and_it_is_the_same_each_time(federation: Federation, composite: Path) -> None:
    before = {name: tensor.clone() for name, tensor in load(composite).state_dict().items()}
    model, tensors = tuned_from(federation, composite)
    routers = {name for layer in range(2) for name in router_tensor_names(layer)}
    assert set(tensors) == routers
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in routers), name
    assert not any(parameter.requires_grad for parameter in model.parameters())
    _, again = tuned_from(federation, composite)
    assert all(torch.equal(tensors[name], again[name]) for name in routers)
    _, other = tuned_from(federation, composite, seed=1)
    assert not any(torch.equal(tensors[name], other[name]) for name in routers if "weight" in name)


def test_the_anchors_row_is_zero_again(federation: Federation, composite: Path) -> None:
    prior = federation.charter.routing.log_prior_anchor
    _, tensors = tuned_from(federation, composite)
    for layer in range(2):
        weight, bias = (tensors[name] for name in router_tensor_names(layer))
        assert (weight.shape, bias.shape) == ((3, 32), (3,))
        assert not weight[0].any()
        assert bias[0] == prior
        assert weight[1:].abs().max() > 0.01


def test_taking_the_anchors_row_from_all_changes_no_weight(federation: Federation, composite: Path) -> None:
    """Shifting every row of a layer by one vector is what the last step undoes; no logit may tell."""
    model, ids = load(composite), torch.arange(3, 27)[None]
    with torch.no_grad():
        before = model(ids).logits
        for name in router_tensor_names(0):
            model.get_parameter(name).add_(torch.randn(model.get_parameter(name).shape[1:]))
        assert torch.allclose(model(ids).logits, before, atol=1e-5)


def test_more_steps_fit_what_they_are_tuned_on(federation: Federation, composite: Path) -> None:
    def loss(model: MotetForCausalLM) -> float:
        tokenizer, texts = federation.home.anchor.tokenizer(), [*PROXIES["medicine"], *PROXIES["law"], *PLAIN]
        return bits_per_byte(score(model, tokenizer, texts, sequence_length=24))

    told = list[tuple[int, int]]()
    model, _ = tuned_from(federation, composite, steps=25, progress=lambda done, total: told.append((done, total)))
    assert loss(model) < loss(load(composite)) - 1e-4
    assert told == [(step, 25) for step in range(1, 26)]


def test_what_cannot_be_tuned_is_said(federation: Federation, composite: Path) -> None:
    model, tokenizer = load(composite), federation.home.anchor.tokenizer()
    with pytest.raises(AssemblyError, match=r"no proxies of law, medicine.*proxies = true"):
        tune(model, tokenizer, {"medicine": [], "law": []}, PLAIN, steps=1, seed=0)
    with pytest.raises(ExpertSetError, match="proxies of surgery"):
        tune(model, tokenizer, {"surgery": PLAIN}, PLAIN, steps=1, seed=0)
    with pytest.raises(DataError, match="no public document"):
        tune(model, tokenizer, PROXIES, [], steps=1, seed=0)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="after 0 of 1 steps of tuning"):
        tune(model, tokenizer, PROXIES, PLAIN, steps=1, seed=0, sequence_length=24)


def test_a_filter_is_not_tuned(federation: Federation, members: dict[str, str], tmp_path: Path) -> None:
    experts = [
        Member(name=name, contribution=digest, expert_file=federation.intake.expert_file(digest))
        for name, digest in members.items()
    ]
    made = assemble(federation.home.anchor, experts, RoutingPolicy(kind="filter"), tmp_path / "filter")
    with pytest.raises(ConfigurationError, match="evidence is counted"):
        tuned_from(federation, made.path)


def test_the_plan_says_what_it_would_be_tuned_on(federation: Federation, members: dict[str, str]) -> None:
    found = plan(federation, (), tune=7)
    counts = {name: len(ids_of(federation.home, name)) for name in members}
    assert min(counts.values()) > 5
    told = found.as_json()["tuning"]
    assert (told["steps"], told["seed"], told["documents"]) == (7, 3, counts)
    assert told["public_documents"] == len(federation.public_text.train())
    assert found.needed_bytes == plan(federation, ()).needed_bytes + found.native_bytes
    assert any(line.startswith("7 steps of tuning") for line in found.lines())
    assert "tuning" not in plan(federation, ()).as_json()
    assert federation.composites() == {}


def test_a_tuned_composite_is_another_one_and_says_with_whom(federation: Federation, members: dict[str, str]) -> None:
    made, plain = make(federation, tune=4, stock=False), make(federation, stock=False)
    assert made.tuned is not None
    assert made.summary.digest != plain.summary.digest
    tuned, untuned = Path(made.summary.path), Path(plain.summary.path)
    differing = {path.name for path in tuned.iterdir() if path.read_bytes() != (untuned / path.name).read_bytes()}
    assert differing == {"router.safetensors", "composite.json", "README.md"}
    assert "tuned" in (tuned / "README.md").read_text()
    assert "tuned" not in (untuned / "README.md").read_text()
    tag = verify_composite(tuned).tuning
    assert tag == made.tuned.tag == plan_tuning(federation, steps=4).tag
    assert tag.membership == membership_of(members.values())
    told = made.as_json()["tuning"]["bits_per_byte"]
    assert set(told) == {"public", "proxies"}
    assert set(told["proxies"]) == set(members)
    assert all(each["before"] != each["after"] for each in told["proxies"].values())
    assert "tuned" in "\n".join(made.lines())
    entries = [entry.body for entry in federation.home.ledger.entries() if entry.kind == "composite"]
    assert [body.get("tuning", {}).get("steps") for body in entries] == [None, 4]
    again = make(federation, tune=4, stock=False)
    assert again == made
    assert set(federation.composites()) == {made.summary.digest, plain.summary.digest}


def test_who_leaves_takes_the_tuned_router_along(
    federation: Federation, members: dict[str, str], law: object, tmp_path: Path
) -> None:
    make(federation, tune=3, stock=False)
    never = make(federation, ("law",), stock=False)
    federation.intake.withdraw(law.withdrawal(federation.home, members["law"]))
    after = make(federation, stock=False)
    assert after.summary.digest == never.summary.digest
    assert verify_composite(Path(after.summary.path)).tuning is None
    anew = make(federation, tune=3, stock=False)
    assert anew.tuned is not None
    assert anew.tuned.tag.documents == {"medicine": len(ids_of(federation.home, "medicine"))}
    published = [digest for digest in federation.composites() if federation.intake.publication(digest)]
    assert set(published) == {after.summary.digest, anew.summary.digest}


def test_who_names_none_takes_part_with_public_text(
    home: CoordinatorHome, admit: Admit, medicine: object, law: object
) -> None:
    digests = [admit(medicine, 1), admit(law, 2, proxies=False)]
    made = make(Federation(home), tune=2, stock=False)
    assert made.tuned is not None
    assert made.tuned.tag.documents == {"law": 0, "medicine": len(ids_of(home, "medicine"))}
    assert made.tuned.tag.membership == membership_of(digests)
    assert set(made.tuned.bits_per_byte) == {"public", "medicine"}


def test_when_nobody_names_any_it_is_an_error(home: CoordinatorHome, admit: Admit, medicine: object) -> None:
    admit(medicine, 1, proxies=False)
    federation = Federation(home)
    for attempt in (plan, make):
        with pytest.raises(AssemblyError, match="saw no proxies of medicine"):
            attempt(federation, (), tune=2)
    assert federation.composites() == {}


def test_the_stock_export_has_the_tuned_router(federation: Federation) -> None:
    from transformers import AutoModelForCausalLM

    made = make(federation, tune=4)
    assert made.summary.stock_path is not None
    stock = AutoModelForCausalLM.from_pretrained(made.summary.stock_path, dtype=torch.float32)
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        assert torch.allclose(stock(ids).logits, load(Path(made.summary.path))(ids).logits, atol=1e-3)


def test_the_command_tells_what_it_did(federation: Federation) -> None:
    command = ["assemble", "--dir", str(federation.home.path), "--no-stock", "--tune", "2", "--json"]
    told = json.loads(CliRunner().invoke(build(), command, catch_exceptions=False).stdout)
    assert told["tuning"]["steps"] == 2
    assert set(told["tuning"]["bits_per_byte"]["public"]) == {"before", "after"}
    dry = json.loads(CliRunner().invoke(build(), [*command, "--dry-run"], catch_exceptions=False).stdout)
    assert dry["tuning"]["documents"] == told["tuning"]["documents"]


def digest(digit: str) -> str:
    return "sha256:" + digit * 64


def tag(**changes: object) -> Tuning:
    content = {"membership": membership_of([digest("1")]), "steps": 3, "seed": 0, "documents": {"code": 4}}
    return Tuning.model_validate(content | changes)


def manifest(tuning: Tuning | None, kind: str = "token") -> CompositeManifest:
    member = {"name": "code", "contribution": digest("1"), "expert": digest("f")}
    content = {"anchor": digest("0"), "members": (member,), "routing": {"kind": kind}, "files": (), "tuning": tuning}
    return CompositeManifest.parse(
        CompositeManifest.model_construct(**content).model_dump_json(warnings=False).encode()
    )


def test_a_manifest_without_tuning_is_what_it_always_was() -> None:
    assert "tuning" not in manifest(None).as_json()
    assert manifest(tag()).as_json()["tuning"]["steps"] == 3
    assert CompositeManifest.parse(manifest(tag()).canonical()) == manifest(tag())
    assert manifest(tag()).digest != manifest(None).digest != manifest(tag(steps=4)).digest


@pytest.mark.parametrize(
    ("tuning", "kind", "message"),
    [
        (tag(membership=digest("9")), "token", "tuned with the membership"),
        (tag(documents={"code": 1, "law": 2}), "token", "wanted each member's"),
        (tag(documents={"code": 0}), "token", "no document"),
        (tag(), "filter", "tuned evidence over the prefix"),
    ],
)
def test_a_tuned_router_passes_for_no_other_membership(tuning: Tuning, kind: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        manifest(tuning, kind)


def test_a_router_goes_into_the_composite_it_was_tuned_for_alone(
    federation: Federation, members: dict[str, str], composite: Path, tmp_path: Path
) -> None:
    _, tensors = tuned_from(federation, composite)
    chosen = dict.fromkeys(members, 3)
    fitting = Tuning(membership=membership_of(members.values()), steps=5, seed=0, documents=chosen)
    with pytest.raises(AssemblyError, match="tuned with the membership"):
        federation.assemble(["law"], tuned=TunedRouter(tensors=tensors, tag=fitting))
    first = next(iter(tensors))
    for spoilt, message in ((tensors[first][:2], "wanted \\(3, 32\\)"), (tensors[first] * float("inf"), "NaN or inf")):
        with pytest.raises(AssemblyError, match=message):
            federation.assemble(tuned=TunedRouter(tensors=tensors | {first: spoilt}, tag=fitting))
    made = federation.assemble(tuned=TunedRouter(tensors=tensors, tag=fitting))
    assert all(torch.equal(load(made.path).get_parameter(name), tensor) for name, tensor in tensors.items())
