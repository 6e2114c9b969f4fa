"""Corpora and an anchor for the tests of the benchmark's training stages."""

import random
from pathlib import Path
from typing import Any

from motet.bench.quality.corpora import write_corpus

WORDS = {
    "public": ["river", "border", "export", "tariff", "coast", "island", "harbour", "treaty"],
    "medicine": ["kidney", "heart", "liver", "lung", "fever", "acute", "chronic", "patient"],
    "law": ["clause", "court", "party", "statute", "appeal", "verdict", "contract", "notice"],
}
SPEC: dict[str, Any] = {
    **{"steps": 12, "batch_size": 4, "sequence_length": 32, "seed": 0},
    **{"learning_rates": [0.01, 0.0001], "public_share": 0.25},
}


def write_texts(folder: Path) -> dict[str, Path]:
    """Domain -> its corpus, of made-up text."""
    made = {}
    for domain, words in WORDS.items():
        made[domain] = folder / domain
        made[domain].mkdir()
        draw = random.Random(domain)
        texts = [" ".join(draw.choices(words, k=30)) for _ in range(60)]
        write_corpus(made[domain], {"train": texts[:40], "validation": texts[40:44], "test": texts[44:]})
    return made


def silent(line: str) -> None:
    """Nobody is told."""
