"""The dry run: the memory that it computes is what training takes, and it warns when there is not enough."""

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from motet.cli import build
from motet.client import plan as planning
from motet.client.memory import AnchorShape, training_memory
from motet.client.owner import TrainingConfig
from motet.client.plan import plan_training
from motet.client.preparation import open_anchor, prepare
from motet.client.speed.contenders import random_material
from motet.client.speed.operations import Shape
from motet.client.training import fingerprint, learning_rate
from motet.client.trial import try_step
from motet.protocols.charter import RoutingRules
from tests.client.conftest import edit

SHAPE = Shape(hidden=128, layers=3, intermediate=768, vocabulary=1024, sequence=128)
PLACES = ({}, {"kind": "lowrank"}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"})


@pytest.mark.parametrize("settings", PLACES, ids=str)
def test_memory_is_what_is_measured(tmp_path: Path, settings: dict) -> None:
    config = TrainingConfig(batch_size=16, sequence_length=128, device="cpu", **settings)
    anchor = random_material(tmp_path, SHAPE).anchor
    half = config.dtype == "bfloat16"
    computed = training_memory(AnchorShape.of(anchor), config, half=half, on_cpu=True)
    measured = try_step(anchor, RoutingRules(), config).extra_bytes
    if measured is None:
        pytest.skip("this system does not forget a peak of memory")
    # 20 % of what training takes; what libraries take once depends on what the process did before.
    assert computed.total - 50e6 - 0.2 * computed.total < measured < computed.total * 1.2


def test_memory_of_several_processes_and_of_shapes(make_home) -> None:
    home = make_home()
    shape = AnchorShape.of(open_anchor(home))
    assert (shape.layers, shape.hidden, shape.intermediate) == (2, 32, 48)
    assert shape.ffn_parameters == 2 * 3 * 32 * 48
    assert shape.factor_parameters == 2 * 3 * (32 + 48)
    config = TrainingConfig(batch_size=8)
    one, two = (
        training_memory(shape, config.model_copy(update={"processes": number}), half=False, on_cpu=True)
        for number in (1, 2)
    )
    assert one.weights == two.weights == one.gradients == 4 * shape.ffn_parameters
    assert one.moments == 2 * two.moments == 8 * shape.ffn_parameters
    assert one.activations == 2 * two.activations


def test_a_plan_of_a_low_rank_expert(make_home) -> None:
    home = make_home(training={"kind": "lowrank", "rank": 4})
    plan = plan_training(home.path)
    assert plan.trained_parameters == 4 * 2 * 3 * (32 + 48)
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert not plan.warnings
    assert plan.as_json()["memory"]["total"] == plan.memory_bytes


def test_the_learning_rate_suits_the_kind_of_expert_unless_it_is_set(make_home) -> None:
    settings = make_home().config.training.model_copy(update={"learning_rate": None})
    assert settings.peak_rate == 5e-4
    lowrank = settings.model_copy(update={"kind": "lowrank"})
    assert lowrank.peak_rate == 2e-3
    assert learning_rate(lowrank.warmup, lowrank) == pytest.approx(2e-3)
    assert settings.model_copy(update={"learning_rate": 1.0}).peak_rate == 1.0
    home = make_home("twin", training={"learning_rate": 5e-4})
    unsaid = home.config.training.model_copy(update={"learning_rate": None})
    material = prepare(home)
    assert fingerprint(material, unsaid) == fingerprint(material, home.config.training)  # a full one goes on as it was


def test_the_plan_tells_the_learning_rate_and_warns_of_one_for_whole_matrices(make_home) -> None:
    home = make_home(training={"learning_rate": None})
    edit(home, 'kind = "full"', 'kind = "lowrank"')  # what joining wrote must not pin a full expert's rate
    plan = plan_training(home.path)
    assert (plan.kind, plan.learning_rate, plan.warnings) == ("lowrank", 2e-3, [])
    assert "learning rate 0.002 at its peak" in "\n".join(plan.lines())
    edit(home, 'kind = "lowrank"', 'kind = "lowrank"\nlearning_rate = 0.0005')
    plan = plan_training(home.path)
    assert "learning_rate = 0.0005 is little for a low-rank expert" in plan.warnings[0]
    assert plan.seconds is not None  # which is no reason not to try


def test_it_warns_of_sequences_beyond_the_anchors_positions(make_home) -> None:
    plan = plan_training(make_home(training={"sequence_length": 128}).path)
    assert (plan.max_position_embeddings, plan.warnings) == (128, [])
    longer = dataclasses.replace(plan, sequence_length=129)
    assert longer.warnings[0].startswith("sequence_length = 129 is beyond the anchor's max_position_embeddings, 128: ")
    assert longer.as_json()["max_position_embeddings"] == 128
    assert not dataclasses.replace(longer, max_position_embeddings=None).warnings


def test_it_warns_when_memory_will_not_do_and_tries_nothing(make_home, monkeypatch) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda device: 1_000_000)
    monkeypatch.setattr(planning, "try_step", lambda *args: pytest.fail("a trial would have run out of memory"))
    home = make_home()
    result = CliRunner().invoke(build(), ["train", "--dry-run", "--json", "--dir", str(home.path)])
    found = json.loads(result.stdout)
    assert found["seconds"] is None
    assert "cpu has 1 MB free: lower batch_size" in found["warnings"][0]
    plan = plan_training(home.path)
    assert any(line.startswith("warning: training takes about") for line in plan.lines())
    assert plan.lines()[-1] == "nothing was trained and nothing has left"
    roomy = dataclasses.replace(plan, free_bytes=1 << 40)
    assert not roomy.warnings


@pytest.mark.slow
def test_a_plan_tries_as_many_processes_as_there_would_be(make_home) -> None:
    plan = plan_training(make_home(training={"processes": 2}).path)
    assert plan.seconds is not None
    assert plan.memory_bytes == 2 * plan.memory.total
    assert "2 processes on cpu" in "\n".join(plan.lines())
