"""Turning what each package holds into files of documents.

Guarantees documents of about a thousand bytes, each cut from one file at blank lines where there are any, in the order
of their file; a file is the documents of one page, module, text or chapter.

    files = man_pages(MANPAGES_DE, cache)
    documents = spread(files)
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from markup import html, roff
from quickstart import Document, Package, grouped
from selection import File

CUT_BYTES, LONGEST_BYTES = 1000, 2000
Text = tuple[str, str]  # a name, and the text that has it


def pieces(name: str, text: str) -> File:
    """A text cut at the first blank line after `CUT_BYTES`, at the latest at a line end after `LONGEST_BYTES`."""
    documents, lines, size, first = File(), list[str](), 0, 1
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if (size >= CUT_BYTES and not line.strip()) or size >= LONGEST_BYTES:
            documents.append(Document(id=f"{name}/{first}", text="\n".join(lines).strip("\n")))
            lines, size, first = [], 0, number
        lines.append(line)
        size += len(line.encode()) + 1
    if rest := "\n".join(lines).strip("\n"):
        documents.append(Document(id=f"{name}/{first}", text=rest))
    return documents


def texts(
    package: Package, cache: Path, *, suffix: str | tuple[str, ...], under: tuple[str, ...] = ("",)
) -> Iterator[Text]:
    """(name, text) of a package's files below one of these folders; those packed by gzip or dictzip are unpacked."""
    for path, content in package.members(cache, suffix=suffix):
        if any(folder in path for folder in under):
            unpacked = gzip.decompress(content) if path.endswith((".gz", ".dz")) else content
            yield f"{package.name}/{path.removeprefix('./')}", unpacked.decode("utf-8", errors="replace")


def man_pages(package: Package, cache: Path) -> list[File]:
    """Each page of a package; those that only name another page are left out."""
    pages = texts(package, cache, suffix=".gz", under=("/man/",))
    return [pieces(_short(name), roff(page)) for name, page in pages if not page.startswith(".so ")]


def _short(name: str) -> str:
    return name.replace("usr/share/man/", "").removesuffix(".gz")


# The head of SQLite's pages, and the lines that lead through R's manuals.
_MENU = re.compile(
    r"\A.*Search Changelog\n|^(?:Next|Previous|Up): [^\n]*\[Contents\][^\n]*\n+", re.DOTALL | re.MULTILINE
)


def web_pages(package: Package, cache: Path) -> list[File]:
    """Each HTML page of a package, without its menu; SQLite's indexes are left out."""
    pages = [(name, page) for name, page in texts(package, cache, suffix=".html") if "/doc_" not in name]
    return [pieces(f"{package.name}/{Path(name).name}", _MENU.sub("", html(page))) for name, page in pages]


def source_files(package: Package, cache: Path, *, suffix: str | tuple[str, ...], under: tuple[str, ...]) -> list[File]:
    """Each source file of a package, as it stands."""
    return [pieces(name, text) for name, text in texts(package, cache, suffix=suffix, under=under)]


def python_modules(package: Package, cache: Path) -> list[File]:
    """Each module of the standard library that Pyodide packs, but for tables of characters and topics."""
    ((_, packed),) = package.members(cache, suffix="/python_stdlib.zip")
    with zipfile.ZipFile(io.BytesIO(packed)) as library:
        names = sorted(name for name in library.namelist() if name.endswith(".py"))
        kept = [name for name in names if not name.startswith(("encodings/", "pydoc_data/"))]
        return [pieces(f"python/{name}", library.read(name).decode()) for name in kept]


def licences(package: Package, cache: Path) -> list[File]:
    """The text of each licence."""
    files = texts(package, cache, suffix=".json", under=("/licenses/",))
    return [pieces(f"spdx/{Path(name).stem}", json.loads(content)["licenseText"]) for name, content in files]


def foldoc(dictionary: str) -> Iterator[Document]:
    """Groups of consecutive entries, without the dates of their revisions."""
    entries = (f"{entry}" for entry in _entries(dictionary) if not entry.startswith("00-database"))
    named = ((entry.splitlines()[0], re.sub(r"\n\s*\(\d{4}-\d\d-\d\d\)", "", entry)) for entry in entries)
    yield from grouped(_numbered(named), "foldoc", separator="\n\n")


# Marks of the subjects that an owner of the benchmark holds; Webster's sources and square-bracketed notes.
_OWNED_FIELDS = re.compile(r"\((?:Med|Anat|Surg|Physiol|Pharm|Math|Geom|Alg|Arith|Trig|Law|Script|Bib|Computers?)\b")
_SOURCE_NOTE = re.compile(r"\n\s*\[[^\]\n]*\](?=\n|$)")


def gcide(dictionary: str) -> Iterator[Document]:
    """Groups of consecutive entries of the dictionary of English, without the owners' subjects."""
    body = dictionary[dictionary.index("\nA \\A") :]
    entries = (entry for entry in _entries(body) if not _OWNED_FIELDS.search(entry))
    named = ((entry.split("\\")[0].strip(), _SOURCE_NOTE.sub("", entry)) for entry in entries)
    yield from grouped(_numbered(named), "gcide", separator="\n")


def _entries(dictionary: str) -> Iterator[str]:
    """Entries begin in the first column."""
    return (stripped for entry in re.split(r"\n(?=\S)", dictionary) if (stripped := entry.strip("\n")))


def _numbered(named: Iterable[Text]) -> Iterator[Text]:
    """Headwords repeat: a number makes them names."""
    return ((f"{name[:40]}/{number}", text) for number, (name, text) in enumerate(named))


def brown(name: str, tagged: str) -> File:
    """One text of the Brown corpus: tags dropped, punctuation set as usual."""
    paragraphs = [_untagged(paragraph) for paragraph in re.split(r"\n\s*\n", tagged)]
    numbered = ((str(number), text) for number, text in enumerate(paragraphs) if text)
    return list(grouped(numbered, f"brown/{name}", separator="\n"))


def _untagged(paragraph: str) -> str:
    text = " ".join(word.rsplit("/", 1)[0] for word in paragraph.split())
    text = text.replace("`` ", '"').replace(" ''", '"')
    return re.sub(r" ([.,;:?!)])|(\() ", lambda found: found[1] or found[2], text)


def scripture(verses: str) -> list[File]:
    """Each chapter of the Bible: its name, then a verse a line, without the marks of added words and paragraphs."""
    chapters: dict[str, list[Text]] = {}
    for reference, verse in json.loads(verses).items():
        chapter, number = reference.rsplit(":", 1)
        chapters.setdefault(chapter, []).append((number, f"{number} {re.sub(r'[][#]', '', verse).strip()}"))
    return [list(grouped(lines, f"kjv/{name}", separator="\n", title=f"{name}\n")) for name, lines in chapters.items()]


_PROSE = {"Description", "Extended_Description", "Note", "Intro_Text", "Body_Text", "Background_Detail", "xhtml:p"}
_NO_PROSE = {
    "Detection_Methods",
    "Example_Code",
    "Taxonomy_Mappings",
    "Content_History",
    "Mapping_Notes",
    "References",
    "attr",
}


def weaknesses(dictionary: str) -> list[File]:
    """Each entry of the Common Weakness Enumeration: its name and its prose, without codes and references."""
    entries: dict[str, Any] = json.loads(dictionary)
    return [
        pieces(f"cwe/{number}", "\n\n".join(dict.fromkeys([entry["attr"]["@_Name"], *_prose(entry)])))
        for number, entry in entries.items()
    ]


def _prose(node: object, *, wanted: bool = False) -> Iterator[str]:
    """The strings below the keys that hold prose."""
    if isinstance(node, str):
        if wanted and (text := " ".join(node.split())):
            yield text
    elif isinstance(node, list):
        for each in node:
            yield from _prose(each, wanted=wanted)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key not in _NO_PROSE:
                yield from _prose(value, wanted=wanted or key in _PROSE)


def sayings(package: Package, cache: Path) -> list[File]:
    """Each collection of fortunes, consecutive sayings grouped."""
    files = [(Path(path).name, text) for path, text in texts(package, cache, suffix="") if _COLLECTION.search(path)]
    return [list(grouped(_apart(text), f"fortunes/{name}", separator="\n")) for name, text in files]


_COLLECTION = re.compile(r"/fortunes/(?!ethnic|men-women)[a-z-]+$")


def _apart(collection: str) -> Iterator[Text]:
    """A line with a percent sign stands between two sayings."""
    return ((str(number), saying) for number, saying in enumerate(re.split(r"^%\n", collection, flags=re.MULTILINE)))
