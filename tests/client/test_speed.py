"""`motet bench train`: what is counted is what is computed, and all train the same thing."""

import json
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from motet.cli import build
from motet.client.owner import TrainingConfig
from motet.client.speed import run
from motet.client.speed.contenders import our_step, plain_fine_tune, plain_lora, random_material, random_rows
from motet.client.speed.operations import Shape, ffn_parameters, fine_tune_flops, full_expert_flops, full_flop_bound

SMALL = Shape(hidden=64, layers=3, intermediate=96, vocabulary=128, sequence=16)
SETTINGS = TrainingConfig(batch_size=2, sequence_length=16, device="cpu", checkpoint_every=1)


def counted(contender, steps: int = 1) -> int:
    contender(1)
    with FlopCounterMode(display=False) as counter:
        contender(steps)
    return counter.get_total_flops()


def test_operations_are_those_that_torch_counts(tmp_path: Path) -> None:
    material, rows = random_material(tmp_path / "anchor", SMALL), random_rows(SMALL, 2)
    # torch knows no formula for the CPU's attention: two products of all positions forward, five backward.
    unseen = 2 * SMALL.sequence * SMALL.hidden * (2 * SMALL.layers + 5 * (SMALL.layers - 1))
    tokens = 2 * SMALL.sequence
    plain = counted(plain_fine_tune(material, rows, SETTINGS, tmp_path / "trainer"))
    assert plain == tokens * (fine_tune_flops(SMALL) - unseen)
    ours = counted(our_step(material, rows, SETTINGS))
    assert ours == tokens * (full_expert_flops(SMALL) - unseen)


def test_the_aims_anchor() -> None:
    assert ffn_parameters(run.SHAPE) == 8 * 3 * 512 * 2048
    assert full_flop_bound(run.SHAPE) == pytest.approx(0.688, abs=1e-3)


def test_a_low_rank_step_multiplies_no_more_than_pefts(tmp_path: Path) -> None:
    material, rows = random_material(tmp_path / "anchor", SMALL), random_rows(SMALL, 2)
    settings = SETTINGS.model_copy(update={"kind": "lowrank", "rank": 4})
    theirs = counted(plain_lora(material, rows, settings, tmp_path / "peft"))
    assert counted(our_step(material, rows, settings)) <= theirs


def test_the_command_prints_one_json_value(monkeypatch) -> None:
    monkeypatch.setattr(run, "SHAPE", SMALL)
    result = CliRunner().invoke(build(), ["bench", "train", "--rounds", "1", "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert list(found) == ["full_vs_trainer", "full_flop_bound", "lowrank_vs_peft", "tokens_per_second", "model"]
    assert set(found["tokens_per_second"]) == {"trainer", "full", "peft", "lowrank"}
    assert found["full_vs_trainer"] > 0
    assert found["model"]["hidden"] == 64


def test_every_contender_keeps_its_state_from_round_to_round(tmp_path: Path) -> None:
    material, rows = random_material(tmp_path / "anchor", SMALL), random_rows(SMALL, 2)
    contender = plain_fine_tune(material, rows, SETTINGS, tmp_path / "trainer")
    made: list[torch.optim.Optimizer] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: made.append(optimizer))
    try:
        assert contender(1) > 0
        assert contender(2) > 0
    finally:
        handle.remove()
    assert len(made) == 3
    assert len(set(map(id, made))) == 1
    assert {int(state["step"]) for state in made[0].state.values()} == {3}
