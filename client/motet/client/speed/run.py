"""One measurement of how fast experts train: every contender in every round, one after the other, and the medians.

run_train(SHAPE, tell=note).as_json()["full_vs_trainer"]

A machine that slows down slows all alike, since each ratio is the median of the ratios of rounds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from transformers.utils import logging as transformers_logging

from motet.client.owner import TrainingConfig
from motet.client.speed.contenders import (
    Contender,
    our_step,
    plain_fine_tune,
    plain_lora,
    random_material,
    random_rows,
)
from motet.client.speed.operations import Shape, ffn_parameters, full_flop_bound

SHAPE = Shape(hidden=512, layers=8, intermediate=2048, vocabulary=8192, sequence=256)
"""The anchor that figures are compared on."""

BATCH_SIZE = 4
RANK = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """What was measured. Speeds are in tokens a second; ratios are ours over theirs."""

    shape: Shape
    batch_size: int
    rank: int
    threads: int
    tokens_per_second: dict[str, float]
    full_vs_trainer: float
    lowrank_vs_peft: float

    def as_json(self) -> dict[str, object]:
        """The measurement as a JSON object."""
        return {
            "full_vs_trainer": round(self.full_vs_trainer, 4),
            "full_flop_bound": round(full_flop_bound(self.shape), 4),
            "lowrank_vs_peft": round(self.lowrank_vs_peft, 4),
            "tokens_per_second": {name: round(speed, 1) for name, speed in self.tokens_per_second.items()},
            "model": self.shape.as_json()
            | {
                "batch_size": self.batch_size,
                "rank": self.rank,
                "threads": self.threads,
                "ffn_parameters": ffn_parameters(self.shape),
            },
        }

    def lines(self) -> list[str]:
        """The measurement for people."""
        bound = full_flop_bound(self.shape)
        speeds = [f"{name:<10}{speed:>10,.0f} tokens/s" for name, speed in self.tokens_per_second.items()]
        return [
            *speeds,
            f"a full expert trains at {self.full_vs_trainer:.3f} of a plain fine-tune; counting allows {bound:.3f}, "
            f"of which that is {100 * self.full_vs_trainer / bound:.0f} %",
            f"a low-rank expert trains at {self.lowrank_vs_peft:.3f} of PEFT's LoRA",
        ]


def run_train(
    shape: Shape,
    *,
    rounds: int = 5,
    steps: int = 1,
    batch_size: int = BATCH_SIZE,
    rank: int = RANK,
    threads: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> Speeds:
    """Time every contender in every round, after one that is not counted.

    Args:
        shape: of the random anchor.
        rounds: how many are counted.
        steps: how many each contender does in a round.
        batch_size: sequences in a step.
        rank: of the low-rank experts.
        threads: of the CPU.
        tell: told what is being measured.

    Raises:
        StorageError: the disk is full.
    """
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with TemporaryDirectory(prefix="motet-bench-") as folder:
        contenders = _contenders(Path(folder), shape, batch_size, rank, threads)
        tokens = batch_size * shape.sequence
        found = _speeds(contenders, rounds=rounds, steps=steps, tokens=tokens, tell=tell)
    return Speeds(
        shape=shape,
        batch_size=batch_size,
        rank=rank,
        threads=threads,
        tokens_per_second={name: median(speeds) for name, speeds in found.items()},
        full_vs_trainer=_ratio(found, "full", "trainer"),
        lowrank_vs_peft=_ratio(found, "lowrank", "peft"),
    )


def _contenders(folder: Path, shape: Shape, batch_size: int, rank: int, threads: int) -> dict[str, Contender]:
    full = TrainingConfig(batch_size=batch_size, sequence_length=shape.sequence, threads=threads, device="cpu")
    lowrank = full.model_copy(update={"kind": "lowrank", "rank": rank})
    material, rows = random_material(folder / "anchor", shape), random_rows(shape, batch_size)
    return {
        "trainer": plain_fine_tune(material, rows, full, folder / "trainer"),
        "full": our_step(material, rows, full),
        "peft": plain_lora(material, rows, lowrank, folder / "peft"),
        "lowrank": our_step(material, rows, lowrank),
    }


def _speeds(
    contenders: Mapping[str, Contender], *, rounds: int, steps: int, tokens: int, tell: Callable[[str], None]
) -> dict[str, list[float]]:
    """Tokens a second of each contender, round by round; the first round is not counted. `tokens` are a step's."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    for number in range(rounds + 1):
        tell("warming up" if number == 0 else f"round {number} of {rounds}")
        order.reverse()  # a machine that slows down is no one's gain
        for name, contender in order:
            seconds = contender(steps) / steps
            if number:
                found[name].append(tokens / seconds)
    return found


def _ratio(found: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    return median(one / other for one, other in zip(found[ours], found[theirs], strict=True))
