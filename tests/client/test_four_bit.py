"""A frozen anchor in four bits: less memory, the same training, refused where it makes no sense."""

from pathlib import Path

import pytest
import torch
from torch import nn

from motet.client import four_bit
from motet.client.memory import AnchorShape, training_memory
from motet.client.owner import TrainingConfig
from motet.client.plan import plan_training
from motet.client.preparation import prepare
from motet.client.training import Progress, fingerprint, model_of, train
from motet.protocols.errors import ConfigurationError

LOWRANK = {"kind": "lowrank", "rank": 4, "frozen_4bit": True}


def test_it_is_refused_for_full_experts() -> None:
    with pytest.raises(ValueError, match=r"kind, frozen_4bit: .*would learn to mend their rounding"):
        TrainingConfig(frozen_4bit=True)


def test_it_is_refused_before_anything_else_where_bitsandbytes_is_missing(make_home, monkeypatch, tmp_path) -> None:
    home = make_home(training=LOWRANK)
    material = prepare(home)
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None)
    for begin in (lambda: plan_training(home.path), lambda: train(material, home.config.training, tmp_path)):
        with pytest.raises(ConfigurationError, match=r"pip install 'motet\[four-bit\]'"):
            begin()


def test_factors_learn_beside_a_rounded_anchor(make_home, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    home = make_home(training=LOWRANK | {"steps": 15})
    material, settings, seen = prepare(home), home.config.training, list[Progress]()
    model, parameters = model_of(material, settings)
    rounded = [name for name, each in model.named_parameters() if each.dtype == torch.uint8]
    assert len(rounded) == 2 * (3 + 4)  # in both layers feed-forward and attention; neither embedding nor head
    assert all(each.dtype == torch.float32 and "lora_" in name for name, each in parameters.items())
    assert type(model.lm_head) is nn.Linear
    made = train(material, settings, tmp_path / "run", on_progress=seen.append)
    assert made is not None
    assert made.factors is not None
    assert seen[-1].loss < seen[0].loss - 0.05
    assert any(each.b.abs().sum() > 0 for each in made.factors.values())
    exact = settings.model_copy(update={"frozen_4bit": False})
    assert fingerprint(material, exact) != fingerprint(material, settings)
    shape = AnchorShape.of(material.anchor)
    small, large = (training_memory(shape, each, half=False, on_cpu=True) for each in (settings, exact))
    assert small.frozen == large.frozen - shape.layer_parameters * 4 + shape.layer_parameters * 9 // 16
    assert shape.layer_parameters == 2 * (3 * 32 * 48 + 4 * 32 * 32)
