"""Adapters as contributions, and contributions as adapters."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from typer.testing import CliRunner

from motet.cli import build, run
from motet.client.adapter_sources import lowrank_in
from motet.client.adapters import write_adapter
from motet.client.adoption import adopt
from motet.client.contribute import contribute, describe, export, warnings
from motet.client.desk import Desk
from motet.client.outbox import Packed, deciding, find_packed, packed_contributions
from motet.client.owner import OwnerHome
from motet.client.preparation import open_anchor, prepare
from motet.client.spool import Spool
from motet.client.training import expert_model
from motet.moe.anchor import Anchor
from motet.moe.composite import compose
from motet.moe.lowrank import read_lowrank_update
from motet.protocols.control import TrainRequest
from motet.protocols.errors import ConfigurationError, ExpertError, ExpertSetError, SpoolError, WorkerBusy
from motet.protocols.expert_files import StoredTensors, materialise_file
from motet.protocols.jobs import StatusQuery, job_id
from tests.client.conftest import edit as edit_settings
from tests.client.conftest import packed_of
from tests.client.test_adapters import edit, saved

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
IDS = torch.randint(3, 259, (2, 12), generator=torch.Generator().manual_seed(0))


def trained_with_peft(home: OwnerHome, directory: Path, *, rank: int = 4) -> Path:
    """An adapter that learnt a little of the owner's text, without Motet."""
    material = prepare(home)
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["gate_proj", "up_proj", "down_proj"])
    model = get_peft_model(material.anchor.model(torch.float32), config)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=2e-2)
    for text in material.corpus.train[:15]:
        ids = torch.tensor([material.anchor.tokenizer()(text)["input_ids"]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    return directory


def logits_in_peft(anchor: Anchor, directory: Path) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(anchor.model(torch.float32), directory)(input_ids=IDS).logits


@pytest.fixture
def adopted(make_home, tmp_path: Path) -> tuple[OwnerHome, Path, Packed]:
    home = make_home(codec={"method": "int8"})
    adapter = trained_with_peft(home, tmp_path / "adapter")
    return home, adapter, adopt(home, adapter)


def test_an_adapter_becomes_a_signed_contribution_with_rows_of_the_owners_text(adopted) -> None:
    home, adapter, packed = adopted
    manifest, material = packed.contribution, prepare(home)
    assert (manifest.kind, manifest.rank, manifest.training.steps) == ("lowrank", 4, 0)
    assert manifest.bits_per_byte["expert"] < manifest.bits_per_byte["anchor"] - 0.05
    expert = read_lowrank_update(packed.update, material.anchor, name="medicine", contribution=packed.digest)
    assert torch.equal(expert.rows.weight, material.rows.weight)
    assert adopt(home, adapter).digest == packed.digest
    said = "\n".join(describe(packed, home))
    assert "two factors of rank 4" in said
    assert "trained      elsewhere" in said


def test_flower_carries_it_though_nobody_has_asked_yet(adopted) -> None:
    home, _, packed = adopted
    assert contribute(home, packed) is None
    desk = Desk.open(home.path, home.key.public)
    request = TrainRequest(charter=home.charter.digest)
    (job,) = desk.submit(request).jobs
    assert (job.state, job.result["contribution"], job.result["transport"]) == ("done", packed.digest, "flower")
    _, inline = desk.answer(StatusQuery(charter=home.charter.digest, inline=packed.digest))
    assert inline.update == packed.update.read_bytes()


def test_a_job_under_way_is_not_done_by_hand(adopted) -> None:
    home, _, packed = adopted
    request, spool = TrainRequest(charter=home.charter.digest), Spool(home.path)
    spool.submit("train", request)
    spool.claim()
    with pytest.raises(SpoolError, match="running, wanted it at rest"):
        contribute(home, packed)
    assert spool.job(job_id(request)).state.state == "running"
    spool.close()


def test_what_speaks_against_its_base_is_told(make_home, tmp_path: Path) -> None:
    home = make_home(codec={"method": "int8"})
    adapter = trained_with_peft(home, tmp_path / "adapter")
    sibling = Path(shutil.copytree(home.anchor, tmp_path / "sibling"))
    (sibling / "tokenizer_config.json").write_text("{}")
    told: list[str] = []
    for base, warned in ((str(home.anchor), False), (str(sibling), True)):
        config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        told.clear()
        packed = adopt(home, adapter, base_confirmed=True, report=lambda share, line: told.append(line))
        assert any(line.startswith("warning: ") and "sibling" in line for line in told) is warned
    assert warnings(packed) == []


def test_an_expert_that_makes_its_owners_text_worse_is_pointed_out(make_home, tmp_path: Path, capsys) -> None:
    home = make_home(codec={"method": "int8"})
    anchor = prepare(home).anchor
    model = get_peft_model(anchor.model(torch.float32), LoraConfig(r=2, target_modules=["up_proj"]))
    draw = torch.Generator().manual_seed(0)
    for name, each in model.named_parameters():
        if "lora_" in name:
            each.data = torch.randn(each.shape, generator=draw)
    model.save_pretrained(tmp_path / "adapter")
    command = ["contribute", "--dir", str(home.path), "--adapter", str(tmp_path / "adapter"), "--dry-run"]
    assert run(command) == 0
    said = capsys.readouterr().out
    assert "warning      on your own text this expert is worse than the anchor, by " in said
    assert "trained on another base" in said
    assert run([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["warnings"]) == 1


def test_until_its_owner_agrees_an_adapter_is_no_contribution(make_home, tmp_path: Path) -> None:
    home = make_home(codec={"method": "int8"}, training={"kind": "lowrank"})
    trained, adapter = packed_of(home), saved(open_anchor(home), tmp_path / "adapter")
    edit(adapter, base_model_name_or_path=str(home.anchor))
    contribute(home, trained)
    said = CliRunner().invoke(build(), ["contribute", "--dir", str(home.path), "--adapter", str(adapter)], input="n\n")
    assert said.exit_code == 1
    assert "version 2 of medicine" in said.output
    assert [packed.digest for packed in packed_contributions(home)] == [trained.digest]
    killed = adopt(home, adapter, draft=True)  # its process ends here
    assert packed_of(home).digest == trained.digest  # else the job that comes next would send it again
    with deciding(adopt(home, adapter, draft=True), home) as agree:
        edit_settings(home, "steps = 6", "steps = 5")
        packed_of(home)  # the worker's, while the owner reads
        with pytest.raises(ConfigurationError, match=r"saw version 2 .* while you decided; run the command again"):
            agree()
    assert not killed.folder.exists()
    with deciding(adopt(home, adapter, draft=True), home) as agree:
        agreed = agree()
    assert find_packed(home).digest == agreed.digest == adopt(home, adapter, draft=True).digest
    assert {path.name for path in home.outbox.iterdir()} == {each.folder.name for each in packed_contributions(home)}


def test_it_waits_for_the_worker(make_home, tmp_path: Path) -> None:
    home = make_home()
    spool = Spool(home.path)
    spool.hold()
    with pytest.raises(WorkerBusy):
        adopt(home, tmp_path / "adapter")
    spool.close()


def test_what_the_charter_rules_out_is_refused(make_home, tmp_path: Path) -> None:
    home = make_home(codec={"method": "int8"})
    adapter = trained_with_peft(home, tmp_path / "adapter", rank=65)
    with pytest.raises(ExpertError, match="rank 65, wanted at most 64"):
        adopt(home, adapter)
    assert not home.outbox.exists()
    with pytest.raises(ConfigurationError, match="ternary"):
        adopt(make_home("law", codec={"method": "ternary"}), adapter)


def test_every_source_gives_the_adapter_that_computes_what_the_composite_does(adopted, tmp_path: Path) -> None:
    home, _, packed = adopted
    anchor = prepare(home).anchor
    expert = read_lowrank_update(packed.update, anchor, name="medicine", contribution=packed.digest)
    # The anchor always takes part: with these priors it has a weight of nought.
    composite = compose(anchor.model(torch.float32), [expert], log_priors={"medicine": 120.0})
    composite.save_pretrained(tmp_path / "composite")
    stored = tmp_path / "expert.safetensors"
    with StoredTensors.of_anchor(anchor.directory) as tensors:
        materialise_file(packed.update, anchor.manifest, tensors, stored, rank=4)
    sources = {
        "home": lowrank_in(home.path),
        "update": lowrank_in(packed.update, anchor=anchor.directory),
        "container": lowrank_in(export(packed, tmp_path / "medicine.motet"), anchor=anchor.directory),
        "store": lowrank_in(stored, anchor=anchor.directory),
        "composite": lowrank_in(tmp_path / "composite", expert="medicine"),
    }
    with torch.no_grad():
        expected = composite(input_ids=IDS).logits
    for name, found in sources.items():
        write_adapter(tmp_path / f"from-{name}", found.factors, base=None if found.base is None else str(found.base))
        assert torch.allclose(logits_in_peft(anchor, tmp_path / f"from-{name}"), expected, atol=1e-4), name
    files = {(tmp_path / f"from-{name}" / "adapter_model.safetensors").read_bytes() for name in sources}
    assert len(files) == 1
    assert json.loads((tmp_path / "from-home" / "adapter_config.json").read_text())["r"] == 4
    assert adopt(home, tmp_path / "from-home").contribution.rank == 4


def test_a_full_expert_and_a_missing_name_are_refused(make_home, tmp_path: Path) -> None:
    home = make_home()
    packed_of(home)
    with pytest.raises(ExpertError, match="full expert"):
        lowrank_in(home.path)
    with pytest.raises(ConfigurationError, match="nothing at"):
        lowrank_in(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="--anchor"):
        lowrank_in(home.path / "owner.toml")
    model, _ = expert_model(prepare(home))
    model.config.contributions = ["sha256:" + 64 * "0"]
    model.save_pretrained(tmp_path / "composite")
    with pytest.raises(ExpertError, match="full expert"):
        lowrank_in(tmp_path / "composite", expert="medicine")
    with pytest.raises(ExpertSetError, match="'law', wanted one of anchor, medicine"):
        lowrank_in(tmp_path / "composite", expert="law")


def test_the_commands_take_an_adapter_and_write_one(
    make_home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(codec={"method": "int8"})
    adapter = str(trained_with_peft(home, tmp_path / "adapter"))
    command = ["contribute", "--dir", str(home.path), "--adapter", adapter, "--json"]
    assert run([*command, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    manifest = told["manifest"]
    assert (manifest["kind"], manifest["rank"]) == ("lowrank", 4)
    assert list(home.outbox.iterdir()) == []
    file = tmp_path / "medicine.motet"
    assert run([*command, "--yes", "--to", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == {"contribution": told["contribution"], "file": str(file)}
    assert find_packed(home).digest == told["contribution"]
    assert run(["export-adapter", str(home.path), str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rank"] == 4
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    (Path(adapter) / "adapter_model.bin").write_bytes(b"")
    assert run(["contribute", "--dir", str(home.path), "--adapter", adapter]) == ExpertError.exit_code
    assert "pickled files" in capsys.readouterr().err
    assert run(["contribute", manifest["update"], "--dir", str(home.path), "--adapter", adapter]) == 2
