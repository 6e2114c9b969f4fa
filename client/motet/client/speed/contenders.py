"""Who is timed: our step on a full and on a low-rank expert, and `transformers.Trainer` on the same matrices.

Guarantees: all train a copy of the same random anchor on the same rows, in float32, with AdamW in its fused form and
the same clip; a contender lives from round to round, so that none is timed while it is made.

    material, rows = random_material(folder, shape), random_rows(shape, batch_size=4)
    ours = our_step(material, rows, TrainingConfig(...))
    seconds = ours(3)                                    # of three steps
"""

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Olmo2Config,
    Olmo2ForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from motet.client.data import Corpus
from motet.client.owner import TrainingConfig
from motet.client.preparation import Material
from motet.client.speed.operations import Shape
from motet.client.step import Step
from motet.client.training import expert_model, learning_rate, starting_factors
from motet.moe.anchor import Anchor
from motet.moe.routing import RoutingRows
from motet.protocols.canonical import digest_of

Contender = Callable[[int], float]
"""Does so many steps, and says how many seconds they took."""


def random_material(folder: Path, shape: Shape) -> Material:
    """A random Olmo2 anchor in float32, written to `folder`, and routing under a charter's defaults."""
    config = Olmo2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=max(1, shape.hidden // 64),
        max_position_embeddings=shape.sequence,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Olmo2ForCausalLM(config).save_pretrained(folder)
    nothing = Corpus(train=(), held_out=(), read=0)
    return Material(
        name="expert",
        charter=digest_of({"bench": "train"}),
        anchor=Anchor.load(folder),
        corpus=nothing,
        public=nothing,
        rows=RoutingRows(
            weight=torch.zeros(shape.layers, shape.hidden),
            bias=torch.zeros(shape.layers),
            tokens=torch.randn(shape.vocabulary, generator=draw) / 4,
        ),
        public_share=0.0,
    )


def random_rows(shape: Shape, batch_size: int) -> Tensor:
    """Token ids (batch, sequence + 1)."""
    draw = torch.Generator().manual_seed(1)
    return torch.randint(3, shape.vocabulary, (batch_size, shape.sequence + 1), generator=draw)


def our_step(material: Material, rows: Tensor, config: TrainingConfig) -> Contender:
    """What `motet train` does in a step: the gradient, the look at it, the update."""
    model, parameters = expert_model(material, factors=starting_factors(material, config))
    step, done = Step.of(model, parameters, config), 0

    def run(steps: int) -> float:
        nonlocal done
        began = time.perf_counter()
        for _ in range(steps):
            loss, norm = step.gradient([rows])
            assert math.isfinite(loss + norm)  # noqa: S101 - as training does
            step.update(rate=learning_rate(done, config))
            done += 1
        return time.perf_counter() - began

    return run


def plain_fine_tune(material: Material, rows: Tensor, config: TrainingConfig, folder: Path) -> Contender:
    """The anchor's own feed-forward matrices, trained by `transformers.Trainer`."""
    model = material.anchor.model(dtype=torch.float32).requires_grad_(False)
    for spec in material.anchor.manifest.ffn():
        model.get_parameter(spec.name).requires_grad_(True)
    return _trainer(model, rows, config, folder)


def plain_lora(material: Material, rows: Tensor, config: TrainingConfig, folder: Path) -> Contender:
    """PEFT's LoRA of the same rank on the same matrices, trained by `transformers.Trainer`."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=round(config.scale * config.rank),
        target_modules=["gate_proj", "up_proj", "down_proj"],
        lora_dropout=0.0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name that is deprecated
        model = get_peft_model(material.anchor.model(dtype=torch.float32), lora)
    return _trainer(model, rows, config, folder)


class _Clock(TrainerCallback):
    """The seconds from the beginning of the first step to the end of the last."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.seconds = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as transformers has it
        self.began = time.perf_counter() if self.began is None else self.began

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        assert self.began is not None  # noqa: S101 - a step begins before it ends
        self.seconds = time.perf_counter() - self.began


def _trainer(model: nn.Module, rows: Tensor, config: TrainingConfig, folder: Path) -> Contender:
    """A Trainer with nothing but the training: no logs, no files. It keeps its optimiser from call to call."""
    ids = rows[:, :-1]  # as many positions as we compute
    clock = _Clock()
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=len(ids),
        max_steps=1,
        learning_rate=config.peak_rate,
        lr_scheduler_type="constant",
        max_grad_norm=config.gradient_clip,
        adam_beta2=0.95,
        use_cpu=True,
        report_to=[],
        logging_strategy=IntervalStrategy.NO,
        save_strategy=SaveStrategy.NO,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model, args=settings, train_dataset=[{"input_ids": row, "labels": row} for row in ids], callbacks=[clock]
    )
    trainer.remove_callback(PrinterCallback)  # it prints on stdout

    def run(steps: int) -> float:
        clock.began, settings.max_steps = None, steps
        trainer.train()
        return clock.seconds

    return run
