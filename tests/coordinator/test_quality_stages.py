"""The stages `merge` and `score` over what earlier stages leave: an anchor, corpora, networks, experts."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from motet.bench.quality.corpora import write_corpus
from motet.bench.quality.results import Results, Scores, merged, read_scores
from motet.coordinator.quality.material import Material, write_ffn
from motet.coordinator.quality.merge import merge_stage
from motet.coordinator.quality.score import score_stage
from motet.coordinator.quality.trained import loader
from motet.moe.anchor import Anchor
from motet.moe.composite import compose
from motet.moe.experts import soup
from motet.moe.lowrank import dense_ffn
from motet.moe.scoring import bits_per_byte, score
from motet.protocols.errors import ConfigurationError
from motet.protocols.expert_files import expert_specs

OWNERS = ("law", "medicine")
SPEC = {"split": "test", "sequence_length": 48, "seed": 0}
GRID = {"log_prior_anchor": [0.0, 2.0]}
Inputs = dict[str, Path]
Run = Callable[..., Scores]


@pytest.fixture(scope="module")
def anchor(anchor_directory: Path) -> Anchor:
    return Anchor.load(anchor_directory)


@pytest.fixture(scope="module")
def texts(anchor: Anchor, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The anchor and three corpora, whose test documents no stage but `score` can read."""
    root, found = tmp_path_factory.mktemp("corpora"), {"anchor": anchor.directory}
    for domain in ("public", *OWNERS):
        folder = root / domain
        folder.mkdir()
        splits = {split: [f"{domain} {split} {number} " * 3 for number in range(3)] for split in ("train", "test")}
        write_corpus(folder, splits | {"validation": [f"{domain} is judged by this"]})
        found["public" if domain == "public" else f"domain:{domain}"] = folder
    return found


@pytest.fixture(scope="module")
def specialists(anchor: Anchor, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("specialists")
    return {name: folder_of(root / name, changed(anchor, seed)) for seed, name in enumerate(OWNERS)}


@pytest.fixture(scope="module")
def experts(anchor: Anchor, specialists: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Store files: the specialists' networks, and rows and evidence that tell the domains' names apart a little."""
    found, draw = {}, torch.Generator().manual_seed(5)
    for name in OWNERS:
        folder = tmp_path_factory.mktemp(name)
        tensors = load_file(specialists[name] / "ffn.safetensors")
        for spec in expert_specs(anchor.manifest):
            if spec.name not in tensors:
                dtype = torch.bfloat16 if spec.dtype == "BF16" else torch.float32
                tensors[spec.name] = (torch.randn(spec.shape, generator=draw)).to(dtype)
        save_file(tensors, folder / "expert.safetensors")
        found[f"expert:{name}"] = folder
    return found


@pytest.fixture
def scored(texts: Inputs, tmp_path: Path) -> Run:
    def run(part: str, inputs: Inputs, **spec: Any) -> Scores:
        score_stage(SPEC | {"part": part} | spec, texts | inputs, tmp_path, lambda line: None)
        return read_scores(tmp_path)

    return run


def changed(anchor: Anchor, seed: int, size: float = 0.2) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (tensor.float() + torch.randn(tensor.shape, generator=draw) * size).to(tensor.dtype)
        for name, tensor in anchor.ffn().items()
    }


def folder_of(folder: Path, ffn: dict[str, Tensor], **record: object) -> Path:
    folder.mkdir()
    write_ffn(folder, ffn)
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def bits(scores: Scores, system: str, domain: str) -> float:
    cell = scores.systems[system][domain]
    return sum(cell.nats) / sum(cell.bytes) / math.log(2)


def test_a_merge_is_of_one_variant(anchor: Anchor, texts: Inputs, specialists: Inputs, tmp_path: Path) -> None:
    networks = {f"network:specialists/{name}": path for name, path in specialists.items()}
    merge_stage({"method": "soup", "sequence_length": 48, "seed": 0}, texts | networks, tmp_path, lambda line: None)
    made, wanted = (
        load_file(tmp_path / "ffn.safetensors"),
        soup([load_file(p / "ffn.safetensors") for p in specialists.values()]),
    )
    assert all(torch.equal(made[name], wanted[name]) for name in anchor.ffn())
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["method"], record["over"]) == ("soup", "specialists")
    assert record["settings"] == {"weight:law": 0.5, "weight:medicine": 0.5}


def test_a_dear_merge_takes_the_variant_of_the_best_soup(
    anchor: Anchor, texts: Inputs, specialists: Inputs, tmp_path: Path
) -> None:
    inputs = dict(texts)
    for variant, judged in (("specialists", 2.5), ("experts", 2.0)):
        inputs[f"merge:soup@{variant}"] = folder_of(tmp_path / variant, {}, judged=judged)
        inputs |= {f"network:{variant}/{name}": path for name, path in specialists.items()}
    out = tmp_path / "out"
    out.mkdir()
    merge_stage({"method": "best-single", "sequence_length": 48, "seed": 0}, inputs, out, lambda line: None)
    assert json.loads((out / "record.json").read_text())["over"] == "experts"


def test_a_part_of_a_split_ends_with_the_document_that_reaches_it(texts: Inputs, tmp_path: Path) -> None:
    write_corpus(tmp_path, {"train": ["a"], "validation": ["four", "five!", "six"], "test": ["four", "five!", "six"]})
    part = Material.of(texts | {"domain:law": tmp_path}, sequence_length=48, most_bytes={"validation": 5})
    assert part.windows("validation")["law"].sizes == (4, 5)
    assert part.windows("test")["law"].sizes == (4, 5, 3)


def test_networks_are_scored_where_they_belong(
    anchor: Anchor, texts: Inputs, specialists: Inputs, scored: Run, tmp_path: Path
) -> None:
    inputs = {f"specialist:{name}": path for name, path in specialists.items()}
    for variant, judged in (("specialists", 2.5), ("experts", 2.0)):
        ffn = changed(anchor, seed=len(variant), size=0.1)
        inputs[f"merge:soup@{variant}"] = folder_of(tmp_path / variant, ffn, over=variant, judged=judged, settings={})
    inputs["merge:ties"] = folder_of(tmp_path / "ties", anchor.ffn(), over="experts", judged=2.0, settings={"scale": 0})
    found = scored("networks", inputs, systems=["specialist", "oracle"])
    assert list(found.systems) == sorted(
        ["anchor", "specialist", "oracle", "soup", "soup@specialists", "soup@experts", "ties"]
    )
    assert found.systems["soup"] == found.systems["soup@experts"] != found.systems["soup@specialists"]
    assert found.settings["soup"]["over"] == "experts"
    assert found.systems["ties"] == found.systems["anchor"]
    specialist = found.systems["specialist"]
    assert specialist == found.systems["oracle"]
    assert specialist["public"] == found.systems["anchor"]["public"]
    assert specialist["law"] != found.systems["anchor"]["law"]
    documents = [f"law test {number} " * 3 for number in range(3)]
    wanted = bits_per_byte(score(anchor.model(torch.float32), anchor.tokenizer(), documents, sequence_length=48))
    assert bits(found, "anchor", "law") == pytest.approx(wanted)


def test_a_composite_and_its_stock_export_agree(experts: Inputs, scored: Run) -> None:
    found = scored("composite", experts, kind="token", grid=GRID, stock=True)
    assert set(found.systems) == {
        *("composite:token", "stock", "composite:token-without:law", "composite:token-without:medicine")
    }
    for domain in ("public", *OWNERS):
        assert bits(found, "stock", domain) == pytest.approx(bits(found, "composite:token", domain), abs=1e-4)
        assert bits(found, "composite:token-without:law", domain) != bits(found, "composite:token", domain)
    assert found.settings["composite:token"]["log_prior_anchor"] in GRID["log_prior_anchor"]
    assert found.settings["stock"] == found.settings["composite:token"]


def test_a_filter_is_chosen_from_its_grid(experts: Inputs, scored: Run) -> None:
    grid = GRID | {"stay": [0.9], "temperature": [2.0, 8.0]}
    found = scored("composite", experts, kind="filter", grid=grid, stock=True)
    settings = found.settings["composite:filter"]
    assert set(settings) == {*grid, "judged"}
    assert all(settings[name] in grid[name] for name in grid)
    assert set(found.settings["stock"]) == {"log_prior_anchor", "gain", "judged"}
    assert found.systems["stock"] != found.systems["composite:filter"]


def test_low_rank_experts_run_as_they_are_and_tell_what_they_take(
    anchor: Anchor, texts: Inputs, scored: Run, tmp_path: Path
) -> None:
    draw, inputs = torch.Generator().manual_seed(7), Inputs()
    for name in OWNERS:
        inputs[f"expert:{name}"] = tmp_path / name
        inputs[f"expert:{name}"].mkdir()
        tensors = {
            spec.name: torch.randn(spec.shape, generator=draw)
            .mul(0.3)
            .to(torch.bfloat16 if "BF" in spec.dtype else None)
            for spec in expert_specs(anchor.manifest, 4)
        }
        save_file(tensors, inputs[f"expert:{name}"] / "expert.safetensors")
    grid = GRID | {"stay": [0.9], "temperature": [2.0, 8.0]}
    found = scored("low-rank", inputs, kind="filter", grid=grid, systems=["lowrank:4"])
    assert set(found.systems) == {"lowrank:4"}
    settings = found.settings["lowrank:4"]
    assert settings["parameters"] == 2 * 3 * 4 * (32 + 48)
    assert settings["share"] == pytest.approx(4 * (32 + 48) / (32 * 48))
    # Expanded, as full experts, they score the same.
    material = Material.of({"anchor": anchor.directory} | inputs, sequence_length=48)
    for name, expert in zip(OWNERS, material.experts(), strict=True):
        tensors = load_file(inputs[f"expert:{name}"] / "expert.safetensors")
        routing = {key: tensor for key, tensor in tensors.items() if ".router." in key}
        save_file(routing | dict(dense_ffn(expert, anchor.ffn())), inputs[f"expert:{name}"] / "expert.safetensors")
    dense = scored("composite", inputs, kind="filter", grid=grid, stock=False)
    for domain in ("public", *OWNERS):
        assert bits(found, "lowrank:4", domain) == pytest.approx(bits(dense, "composite:filter", domain), rel=1e-2)


def test_the_stock_export_of_an_average_scores_as_the_composite(experts: Inputs, scored: Run) -> None:
    grid = GRID | {"gain": [2.0, 8.0]}
    found = scored("composite", experts, kind="token", grid=grid, stock=True)
    assert found.settings["stock"] == found.settings["composite:token"]
    for domain in ("public", *OWNERS):
        assert bits(found, "stock", domain) == pytest.approx(bits(found, "composite:token", domain), rel=1e-4)
    by_rows = scored("composite", experts, kind="token", grid=GRID, stock=False)
    assert found.systems["composite:token"] != by_rows.systems["composite:token"]


def test_nothing_but_the_anchor_speaks_where_its_prior_is_overwhelming(
    experts: Inputs, specialists: Inputs, scored: Run
) -> None:
    plain = scored("networks", {}, systems=[])
    found = scored("composite", experts, kind="token", grid={"log_prior_anchor": [200.0]}, stock=False)
    for domain in ("public", *OWNERS):
        assert bits(found, "composite:token", domain) == pytest.approx(bits(plain, "anchor", domain), rel=1e-5)


def test_a_probe_is_of_the_same_experts_under_another_gate(
    experts: Inputs, texts: Inputs, scored: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    extra = tmp_path_factory.mktemp("texts") / "switching.jsonl"
    extra.write_text(json.dumps({"text": "law and then medicine"}) + "\n")
    step = {"rows": "tokens", "evidence": "step", "stay": 0.9, "temperature": 2.0}
    cells = [
        {"name": "filter", "choices": [step]},
        {"name": "alone", "choices": [step], "members": ["law"]},
        {"name": "chosen", "choices": [{"prior": 0.0}, {"prior": 200.0}, {"evidence": "token", "gain": 2.0}]},
    ]
    found = scored("probe", experts | {"text:switching": extra}, cells=cells)
    grid = {"log_prior_anchor": [0.0], "stay": [0.9], "temperature": [2.0]}
    filtering = scored("composite", experts, kind="filter", grid=grid, stock=False)
    for domain in ("public", *OWNERS):
        assert bits(found, "filter", domain) == pytest.approx(bits(filtering, "composite:filter", domain), rel=1e-5)
        without = bits(filtering, "composite:filter-without:medicine", domain)
        assert bits(found, "alone", domain) == pytest.approx(without, rel=1e-5)
    assert set(found.systems["chosen"]) == {"public", "switching", *OWNERS}
    assert found.settings["chosen"]["evidence"] == "token"


def test_ensembles_are_of_the_anchor_and_all_specialists(specialists: Inputs, scored: Run) -> None:
    inputs = {f"specialist:{name}": path for name, path in specialists.items()}
    found = scored("ensembles", inputs, systems=["btm", "logit-average"])
    assert set(found.systems) == {"btm", "logit-average"}
    assert found.systems["btm"] != found.systems["logit-average"]


def test_what_another_room_trains_is_loaded_by_it(
    anchor: Anchor, experts: Inputs, specialists: Inputs, scored: Run, tmp_path: Path
) -> None:
    inputs = {f"specialist:{name}": path for name, path in specialists.items()}
    for seed, name in enumerate(("anchor", *OWNERS)):
        (folder := tmp_path / f"gate-{name}").mkdir()
        draw = torch.Generator().manual_seed(seed)
        gates = torch.randn(anchor.manifest.layers, anchor.manifest.hidden_size, generator=draw)
        save_file({"gate": gates}, folder / "gate.safetensors")
        inputs[f"gate:{name}"] = folder
    assert set(scored("phatgoose", inputs).systems) == {"phatgoose"}
    material = Material.of({"anchor": anchor.directory} | experts, sequence_length=48)
    compose(material.dense(), material.experts()).save_pretrained(tmp_path / "joint")
    found = scored("joint", {"joint": tmp_path / "joint"}, systems=["joint-equal"])
    composite = scored("composite", experts, kind="token", grid={"log_prior_anchor": [0.0]}, stock=False)
    assert found.systems["joint-equal"] == composite.systems["composite:token"]


def test_nobody_loads_what_nobody_trains() -> None:
    with pytest.raises(ConfigurationError, match="nothing that loads tails"):
        loader("tails")


def test_scores_of_all_parts_make_a_result(experts: Inputs, specialists: Inputs, scored: Run) -> None:
    inputs = {f"specialist:{name}": path for name, path in specialists.items()}
    parts = [
        scored("networks", inputs, systems=["specialist"]),
        scored("composite", experts, kind="token", grid=GRID, stock=False),
    ]
    results = Results.of([merged(parts)])
    assert next(iter(results.systems)) == "anchor"
    assert set(results.opt_out) == set(OWNERS)
    assert set(results.gap_closed["composite:token"]) == set(OWNERS)


def test_another_part_is_unknown(scored: Run) -> None:
    with pytest.raises(ConfigurationError, match="'tails'"):
        scored("tails", {})
