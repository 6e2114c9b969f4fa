"""Choosing documents: which come first, which go, how many stay.

Guarantees that a choice depends on nothing but the documents and their order: no two near-duplicates, as many files
as possible, an order shuffled by `SEED`.

    documents = fill(unique(spread(without_notices(files))), limit)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from quickstart import Document, well_sized

from motet.client.near_duplicates import distinct

SEED = 4
# A paragraph this long in more than this many files is nobody's own text.
NOTICE_BYTES, NOTICE_FILES = 60, 3

SPARE = 1.5  # bytes of candidates for each byte wanted, before near-duplicates go

File = list[Document]  # the pieces of one page, module or text
Item = TypeVar("Item")


def shuffled(items: Iterable[Item]) -> list[Item]:
    """The items in an order that depends on nothing but their number."""
    order = list(items)
    random.Random(SEED).shuffle(order)
    return order


def spread(files: Iterable[File]) -> list[Document]:
    """A piece of every file, then a second one of each that has it, and so on; which piece comes first is random."""
    ranked = [
        (rank, number, document) for number, file in enumerate(files) for rank, document in enumerate(shuffled(file))
    ]
    return [document for _, _, document in sorted(ranked, key=lambda each: each[:2])]


def without_notices(files: Iterable[File]) -> list[File]:
    """The files without the paragraphs that many of them hold."""
    kept = list(files)
    holders = Counter(
        paragraph for file in kept for paragraph in {each for document in file for each in _long(document)}
    )
    return [[_without(document, holders) for document in file] for file in kept]


def _long(document: Document) -> list[str]:
    return [each for each in document.text.split("\n\n") if len(each.encode()) >= NOTICE_BYTES]


def _without(document: Document, holders: Counter[str]) -> Document:
    paragraphs = [each for each in document.text.split("\n\n") if holders[each] <= NOTICE_FILES]
    return Document(id=document.id, text="\n\n".join(paragraphs))


def unique(documents: Iterable[Document]) -> list[Document]:
    """Those of a readable size and an id of their own that are no near-duplicate of a longer one."""
    sized = list({document.id: document for document in well_sized(documents)}.values())
    return [sized[index] for index in distinct([document.text for document in sized])]


def fill(documents: Iterable[Document], limit: int) -> list[Document]:
    """The first documents whose lines fit into `limit` bytes."""
    chosen, size = [], 0
    for document in documents:
        size += len(document.line().encode())
        if size > limit:
            break
        chosen.append(document)
    return chosen
