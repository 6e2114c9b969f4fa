"""The benchmark's anchor is a real one: read by `Anchor.load`, better for having been trained, the same each time."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from motet.bench.quality.corpora import read_split, write_corpus
from motet.bench.quality.descent import Schedule, descend
from motet.bench.quality.pretraining import anchor
from motet.moe.anchor import Anchor
from motet.moe.scoring import bits_per_byte, score
from motet.protocols.errors import DataError, TrainingError

WORDS = ["river", "border", "export", "tariff", "coast", "island", "harbour", "treaty", "price", "ship"]
SPEC = {
    **{"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 48, "vocabulary": 300, "seed": 0},
    **{"steps": 30, "batch_size": 4, "sequence_length": 32, "learning_rate": 0.01},
}


def documents(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=40)) for _ in range(count)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`trained(**changes)`: the folder of an anchor."""
    torch.set_num_threads(1)
    corpus = tmp_path_factory.mktemp("public")
    write_corpus(corpus, {"train": documents(40, 0), "validation": documents(4, 1), "test": documents(4, 2)})

    def train(**changes: object) -> Path:
        out = tmp_path_factory.mktemp("anchor")
        anchor(SPEC | changes, {"public": corpus}, out, lambda line: None)
        return out

    return train


def test_it_is_an_anchor_that_has_learned(trained: Callable[..., Path]) -> None:
    after, before = Anchor.load(trained()), Anchor.load(trained(steps=1))
    assert {spec.dtype for spec in after.manifest.ffn()} == {"BF16"}
    assert after.statistics().mean.shape == (2, 32)
    assert len(after.tokenizer()) <= SPEC["vocabulary"]
    figures = [
        bits_per_byte(score(each.model(torch.float32), each.tokenizer(), documents(5, 3), sequence_length=32))
        for each in (after, before)
    ]
    assert figures[0] < 0.75 * figures[1]


def test_the_seed_and_nothing_else_decides(trained: Callable[..., Path]) -> None:
    digests = [Anchor.load(trained(steps=2, seed=seed)).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_a_corpus_has_text_in_every_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no document for validation and test"):
        write_corpus(tmp_path, {"train": ["a"], "validation": []})
    write_corpus(tmp_path, {"train": ["a\n", "ü\u2028"], "validation": ["b"], "test": ["c"]})
    assert read_split(tmp_path, "train") == ["a\n", "ü\u2028"]
    (tmp_path / "test.jsonl").write_text('{"text": "c"}\n{"txt": "d"}\n')
    with pytest.raises(DataError, match="line 2"):
        read_split(tmp_path, "test")


def test_a_loss_that_is_not_finite_ends_it() -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(TrainingError, match="after 3 of 5 steps"):
        descend(
            nn.Identity(),
            [weight],
            lambda step: torch.tensor([step]),
            Schedule(steps=5, peak=0.1),
            loss=lambda ids: (weight * (float("nan") if ids.item() == 3 else 1.0)).sum(),
        )
