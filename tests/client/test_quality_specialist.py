"""A specialist is the anchor fine-tuned, with the learning rate that its own validation text chose."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from motet.bench.quality.corpora import read_split
from motet.bench.quality.descent import Schedule
from motet.client.owner import TrainingConfig
from motet.client.quality.material import NETWORKS, Judge, enough, read_record
from motet.client.quality.specialist import specialist
from motet.client.training import learning_rate
from motet.moe.anchor import Anchor

from .quality_texts import SPEC, silent, write_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def inputs(texts: dict[str, Path], anchor_directory: Path) -> dict[str, Path]:
    return {"anchor": anchor_directory, "public": texts["public"], "domain": texts["medicine"]}


@pytest.fixture(scope="module")
def trained(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("specialist")
    specialist(SPEC, inputs, out, silent)
    return out


def test_the_best_rate_on_validation_text_is_kept(trained: Path, inputs: dict[str, Path]) -> None:
    anchor, record = Anchor.load(inputs["anchor"]), read_record(trained)
    judge = Judge.of(anchor, read_split(inputs["domain"], "validation"), SPEC["sequence_length"])
    ffn = load_file(trained / NETWORKS)
    assert record["learning_rate"] == 0.01
    assert record["validation"].keys() == {"0.01", "0.0001"}
    assert judge(ffn) == record["validation"]["0.01"] < record["validation"]["0.0001"] < judge(anchor.ffn())
    assert record["tokens"] == 12 * 4 * 32


def test_networks_are_the_anchors_in_name_and_dtype(trained: Path, inputs: dict[str, Path]) -> None:
    own, ffn = Anchor.load(inputs["anchor"]).ffn(), load_file(trained / NETWORKS)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in ffn.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in own.items()
    }
    assert not any(torch.equal(ffn[name], own[name]) for name in own)


def test_another_specialists_rate_is_taken_without_a_grid(
    trained: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    spec = {key: value for key, value in SPEC.items() if key != "learning_rates"}
    specialist(spec, inputs | {"specialist": trained}, tmp_path, silent)
    assert read_record(tmp_path)["validation"].keys() == {"0.01"}
    once, again = load_file(trained / NETWORKS), load_file(tmp_path / NETWORKS)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_without_public_text_none_is_read(inputs: dict[str, Path], texts: dict[str, Path], tmp_path: Path) -> None:
    spec, made = SPEC | {"public_share": 0.0, "steps": 3, "learning_rates": [0.01]}, []
    for domain in ("public", "law"):
        out = tmp_path / domain
        out.mkdir()
        specialist(spec, inputs | {"public": texts[domain]}, out, silent)
        made.append(load_file(out / NETWORKS))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_the_schedule_is_the_owners() -> None:
    ours = Schedule(steps=70, peak=0.02)
    theirs = TrainingConfig(steps=70, learning_rate=0.02, warmup=ours.warmup)
    assert [ours.rate(step) for step in range(70)] == [learning_rate(step, theirs) for step in range(70)]
    assert Schedule(steps=5, peak=0.1).warmup == 0
    assert Schedule(steps=5000, peak=0.1).warmup == 100


def test_no_more_public_text_is_cut_into_tokens_than_a_training_reads() -> None:
    public = [f"{number} " + "x" * 98 for number in range(100)]
    few = enough(public, {"steps": 1, "batch_size": 2, "sequence_length": 64, "public_share": 0.5, "seed": 0})
    other = enough(public, {"steps": 1, "batch_size": 2, "sequence_length": 64, "public_share": 0.5, "seed": 1})
    assert 64 * 8 // 100 <= len(few) <= 64 * 8 // 100 + 1
    assert set(few) < set(public)
    assert few != other
    assert sorted(enough(public, SPEC | {"steps": 1000})) == sorted(public)
