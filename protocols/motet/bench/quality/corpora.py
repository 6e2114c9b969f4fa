"""A corpus on disk, as the stages hand it on: three files of documents that share no text.

    write_corpus(folder, {"train": texts, "validation": more, "test": others})
    read_split(folder, "validation")                      # documents, in the order of the file

What models are trained on is `train`, what settings are chosen by is `validation`, what is reported is `test`. A file
is JSON lines, one document a line under `text`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from motet.protocols.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def write_corpus(folder: Path, documents: Mapping[Split, Sequence[str]]) -> None:
    """Write a split's documents to a file each.

    Raises:
        DataError: a split is empty.
    """
    if empty := [split for split in SPLITS if not documents.get(split)]:
        raise DataError(
            f"saw no document for {' and '.join(empty)}, wanted some in each split; give the corpus more documents"
        )
    for split in SPLITS:
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents[split]]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def read_split(folder: Path, split: Split) -> list[str]:
    """The documents of one split; raises DataError when a line holds none."""
    return list(read_documents(folder / f"{split}.jsonl"))


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a file of JSON lines, those that are blank left out.

    Raises:
        DataError: a line is not JSON, or holds no text under `text`.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f'{path}: line {number}: {error}; wanted an object with a "text"') from error
            if text.strip():
                yield text
