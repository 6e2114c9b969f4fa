"""The benchmark's public corpus: a plausible diet of a base model, without the owners' subjects.

Guarantees English prose of four sources and, for a quarter, structured and technical text; a country of The World
Factbook is in one of the two only. WordNet's nouns of body, state and quantity, the dictionary's medical,
mathematical, legal and biblical entries, and the Brown corpus's learned and religious texts are left out.

    documents = public_documents(cache)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quickstart import (
    FACTBOOK,
    STRUCTURED,
    WORDNET,
    Document,
    factbook,
    factbook_forms,
    package_text,
    well_sized,
    wordnet,
    wordnet_lines,
)
from readers import brown, gcide, texts
from selection import SPARE, fill, shuffled, spread, unique
from sources import BROWN, GCIDE

FACTBOOK_BYTES, WORDNET_BYTES, GCIDE_BYTES, BROWN_BYTES = 1_200_000, 1_100_000, 700_000, 1_500_000
FACTBOOK_FORM_BYTES, WORDNET_LINE_BYTES, PACKAGE_BYTES = 450_000, 100_000, 180_000
PACKAGES = (FACTBOOK, WORDNET, GCIDE, BROWN, *(package for package, _ in STRUCTURED))
OWNED_GENRES = ("cd", "cj")  # religion; learned and scientific writings, medicine and mathematics among them

Named = list[tuple[str, str]]


def public_documents(cache: Path) -> list[Document]:
    """Every document of the corpus, source after source."""
    profiles: Named = [(path, text) for path, text in FACTBOOK.files(cache, suffix=".json") if path.count("/") == 2]
    files = WORDNET.files(cache, suffix="")
    databases: Named = [(path.rsplit(".", 1)[-1], text) for path, text in files if "/dict/data." in path]
    countries = shuffled(profiles)
    formal, prosaic = countries[: len(countries) // 4], countries[len(countries) // 4 :]
    return [
        *_share(shuffled(each for path, text in prosaic for each in factbook(path, text)), FACTBOOK_BYTES),
        *_share(shuffled(each for name, text in databases for each in wordnet(name, text)), WORDNET_BYTES),
        *_share(shuffled(_dictionary(cache)), GCIDE_BYTES),
        *_share(spread(_brown(cache)), BROWN_BYTES),
        *_share(shuffled(each for path, text in formal for each in factbook_forms(path, text)), FACTBOOK_FORM_BYTES),
        *_share(shuffled(each for name, text in databases for each in wordnet_lines(name, text)), WORDNET_LINE_BYTES),
        *_structured(cache),
    ]


def _share(documents: Iterable[Document], limit: int) -> list[Document]:
    """At most `limit` bytes of one source, without its near-duplicates."""
    return fill(unique(fill(well_sized(documents), int(limit * SPARE))), limit)


def _dictionary(cache: Path) -> Iterable[Document]:
    ((_, dictionary),) = texts(GCIDE, cache, suffix="gcide.dict.dz")
    return gcide(dictionary)


def _brown(cache: Path) -> list[list[Document]]:
    """The corpus's texts have names of a genre and a number: ca01 to cr09."""
    files = BROWN.files(cache, suffix=tuple("0123456789"))
    named = [(path.removeprefix("package/"), text) for path, text in files]
    return [brown(name, text) for name, text in named if not name.startswith(OWNED_GENRES)]


def _structured(cache: Path) -> Iterable[Document]:
    """Documentation, style sheets and data of the quickstart's packages."""
    for package, endings in STRUCTURED:
        files = package.files(cache, suffix=endings)
        yield from _share(
            spread([list(package_text(f"{package.name}/{path}", text)) for path, text in files]), PACKAGE_BYTES
        )
