"""What is scored is trained on nowhere: neither copies, nor in another split, nor out of another corpus."""

import json
import random
from pathlib import Path

import pytest

from motet.bench.quality.corpora import SPLITS, read_split
from motet.client.quality.corpus import corpus, is_reported, is_scored
from motet.protocols.errors import DataError

WORDS = [f"word{number}" for number in range(200)]
SPEC = {"validation_documents": 8, "validation_bytes": 100_000, "test_documents": 100, "test_bytes": 3_000}


def documents(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=30)) for _ in range(count)]


def written(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(texts)))
    return path


def made(folder: Path, texts: list[str], **others: Path) -> dict[str, list[str]]:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    corpus(SPEC, {"text": written(folder / "text.jsonl", texts), **others}, out, lambda line: None)
    return {split: read_split(out, split) for split in SPLITS}


def test_the_splits_are_disjoint_and_within_limits(tmp_path: Path) -> None:
    texts = documents(400)
    found = made(tmp_path, texts)
    assert len({text for split in found.values() for text in split}) == sum(map(len, found.values()))
    assert sorted(found["train"]) == sorted(text for text in texts if not is_scored(text))
    assert len(found["validation"]) == 8
    assert 2_500 < sum(map(len, found["test"])) <= 3_000
    assert all(is_scored(text) and is_reported(text) for text in found["test"])
    assert not any(is_reported(text) for text in found["validation"])


def test_a_document_falls_into_the_same_split_beside_others(tmp_path: Path) -> None:
    few, many = documents(60), documents(60) + documents(200, seed=1)
    small, large = made(tmp_path, few), made(tmp_path, many[::-1])
    assert {text for text in large["train"] if text in few} == set(small["train"])


def test_a_repeat_of_a_held_out_document_is_not_trained_on(tmp_path: Path) -> None:
    texts = documents(200)
    held_out = [text for text in texts if is_scored(text)]
    longer = [f"{text} and so on and so forth" for text in held_out]
    assert any(not is_scored(text) for text in longer)
    found = made(tmp_path, texts + longer)
    scored = {text for split in ("validation", "test") for text in found[split]}
    assert not [text for text in found["train"] if any(text.startswith(each) or each in text for each in scored)]


def test_neither_is_that_of_another_corpus(tmp_path: Path) -> None:
    own, other = documents(100), documents(100, seed=1)
    secret = next(text for text in other if is_scored(text))
    copy = next(text for number in range(99) if not is_scored(text := f"{secret} copy {number}"))
    beside = written(tmp_path / "other.jsonl", other)
    assert copy in made(tmp_path, [*own, copy])["train"]
    assert copy not in made(tmp_path, [*own, copy], public=beside)["train"]


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give the corpus more documents"):
        made(tmp_path, documents(1))
