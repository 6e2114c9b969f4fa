"""The stage `corpus`: one file of documents as `motet.bench.quality.corpora` keeps it, split for training and scoring.

Guarantees: no document of any split holds half of its shingles from longer ones in the file; none to train on repeats
one that is held out, here or in the other corpora given; a document falls into the same split beside any others.

    corpus({"validation_documents": 100, "validation_bytes": 60_000, "test_documents": 200, "test_bytes": 120_000},
           {"text": Path("medicine.jsonl")}, out, tell)       # spec: the [evaluation] table
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from motet.bench.quality.corpora import Split, read_documents, write_corpus
from motet.bench.quality.stages import Tell
from motet.client.near_duplicates import apart, distinct
from motet.client.sampling import sample
from motet.protocols.split import PUBLIC_SEED, is_held_out

HELD_OUT_SHARE = 0.2
TEST_SHARE = 0.5
"""The share of the held-out documents that is reported on."""
TEST_SEED = 1


def corpus(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell) -> None:
    """Clean and split the file `text`; other files that are given are corpora whose held-out text is not trained on."""
    texts = list(read_documents(inputs["text"]))
    tell(f"looking for repeats among {len(texts)} documents")
    kept = [texts[index] for index in distinct(texts)]
    held_out = [text for text in kept if is_scored(text)]
    others = [text for name, path in inputs.items() if name != "text" for text in read_documents(path)]
    train = [text for text in kept if not is_scored(text)]
    scored = [*held_out, *filter(is_scored, others)]
    write_corpus(
        out,
        {
            "train": [train[index] for index in apart(train, scored)],
            "validation": cut(spec, "validation", (text for text in held_out if not is_reported(text))),
            "test": cut(spec, "test", filter(is_reported, held_out)),
        },
    )


def is_scored(text: str) -> bool:
    """Whether a document is held out from training."""
    return is_held_out(text, HELD_OUT_SHARE, PUBLIC_SEED)


def is_reported(text: str) -> bool:
    """Whether a held-out document is one that is reported on; the others choose settings."""
    return is_held_out(text, TEST_SHARE, TEST_SEED)


def cut(spec: Mapping[str, Any], split: Split, texts: Iterable[str]) -> Sequence[str]:
    """A sample of so many documents and bytes as the spec allows the split, but one document at least."""
    chosen: list[str] = []
    left = spec[f"{split}_bytes"]
    for text in sample(texts, spec[f"{split}_documents"], seed=0):
        left -= len(text.encode())
        if left < 0 and chosen:
            break
        chosen.append(text)
    return chosen
