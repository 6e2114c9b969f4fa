"""Turning what the packages hold into documents a person could read.

Guarantees documents of about 300 to 3000 bytes, one subject each, in the order of their source:

    icd(text)       one category of ICD-10-CM with its descendants, inclusion terms and excludes notes
    metamath(text)  consecutive statements of set.mm with their comments and hypotheses, without proofs
    factbook(...)   part of one chapter about one country
    wordnet(text)   consecutive synsets: the words and what they mean
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

LEAST_BYTES, MOST_BYTES = 300, 3000
GROUP_BYTES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A piece of text and the name it has in its source."""

    id: str
    text: str

    @property
    def size(self) -> int:
        """Bytes of UTF-8."""
        return len(self.text.encode())

    def line(self) -> str:
        """This document as one line of JSON Lines."""
        return json.dumps({"id": self.id, "text": self.text}, ensure_ascii=False) + "\n"


def grouped(
    paragraphs: Iterable[tuple[str, str]], prefix: str, *, separator: str, title: str = ""
) -> Iterator[Document]:
    """Joins consecutive (id, paragraph) pairs into documents of about `GROUP_BYTES`, named after their first one."""
    first, lines, size = "", list[str](), 0
    for name, paragraph in paragraphs:
        first, size = first or name, size + len(paragraph.encode())
        lines.append(paragraph)
        if size >= GROUP_BYTES:
            yield Document(id=f"{prefix}/{first}", text=title + separator.join(lines))
            first, lines, size = "", [], 0
    if size >= LEAST_BYTES:
        yield Document(id=f"{prefix}/{first}", text=title + separator.join(lines))


def well_sized(documents: Iterable[Document]) -> list[Document]:
    """Those of `LEAST_BYTES` to `MOST_BYTES`."""
    return [document for document in documents if LEAST_BYTES <= document.size <= MOST_BYTES]


# ICD-10-CM: the tabular list in XML; <diag> elements nest from the category (three characters) to the full code.
_NOTES = {
    "inclusionTerm": "Also called",
    "includes": "Includes",
    "excludes1": "Excludes",
    "excludes2": "Not included here",
    "codeFirst": "Code first",
    "useAdditionalCode": "Use additional code for",
    "codeAlso": "Code also",
    "notes": "Note",
}


def icd(tabular: str) -> Iterator[Document]:
    """One document for each category of the tabular list."""
    for category in ElementTree.fromstring(tabular).iterfind("./chapter/section/diag"):
        yield Document(id=f"icd-10-cm/{category.findtext('name')}", text="\n".join(_diagnosis(category)))


def _diagnosis(diagnosis: ElementTree.Element) -> Iterator[str]:
    yield f"{diagnosis.findtext('name')} {diagnosis.findtext('desc')}."
    for tag, label in _NOTES.items():
        if notes := [note.text or "" for note in diagnosis.iterfind(f"./{tag}/note")]:
            yield f"{label}: {'; '.join(notes)}."
    for child in diagnosis.iterfind("diag"):
        yield from _diagnosis(child)


# Metamath: "$( comment $)", "label $e formula $." (hypothesis), "label $a ... $." and "label $p formula $= proof $.".
_METAMATH = re.compile(
    r"\$\((?P<comment>.*?)\$\)"
    r"|(?P<label>\S+)\s+\$(?P<kind>[eap])\s+(?P<formula>\|-.*?)\s(?:\$=.*?)?\$\."
    r"|\$[{}]",
    re.DOTALL,
)
_CREDITS = re.compile(
    r"\s*\((?:Contributed|Revised|Proof|Proposed|Modified|Revision|New usage|This theorem|Unnecessary)\b"
    r"[^()]*(?:\([^()]*\)[^()]*)*\)"
)


def metamath(database: str) -> Iterator[Document]:
    """Groups of consecutive assertions, each after its comment and hypotheses; credits and dates are left out."""
    yield from grouped(_assertions(database), "set.mm", separator="\n\n")


def _assertions(database: str) -> Iterator[tuple[str, str]]:
    comment, hypotheses = "", list[str]()
    for match in _METAMATH.finditer(database):
        if match["comment"] is not None:
            comment = _CREDITS.sub("", _one_line(match["comment"]))
        elif match["label"] is None:  # a scope opens or closes
            hypotheses = []
        elif match["kind"] == "e":
            hypotheses.append(f"{match['label']} $e {_one_line(match['formula'])} $.")
        elif comment and "#*#*" not in comment and "=-=-" not in comment:
            statement = f"{match['label']} ${match['kind']} {_one_line(match['formula'])} $."
            yield match["label"], "\n".join([comment, *hypotheses, statement])
            comment, hypotheses = "", []


def _one_line(text: str) -> str:
    return " ".join(text.split())


# The World Factbook: chapters of fields, which hold "text" or further fields.
def factbook(path: str, profile: str) -> Iterator[Document]:
    """The documents of one country: parts of a chapter, each opened by the country's name."""
    chapters: dict[str, Any] = json.loads(profile)
    names = chapters.get("Government", {}).get("Country name", {})
    name = names.get("conventional short form", {}).get("text", "").split("(")[0].strip()
    if not name or name == "none":
        return
    code = path.rsplit("/", 1)[-1].removesuffix(".json")
    for chapter, fields in chapters.items():
        lines = ((f"{chapter}/{field}", f"{field}: {text}") for field, text in factbook_fields(fields))
        yield from grouped(lines, f"factbook/{code}", separator="\n", title=f"{name}: {chapter}\n")


def factbook_fields(node: dict[str, Any], label: str = "") -> Iterator[tuple[str, str]]:
    """(label, text) of each text below a node; a label holds those above it, joined by commas."""
    for key, value in node.items():
        if key == "text":
            yield label, _one_line(str(value))
        elif isinstance(value, dict):
            yield from factbook_fields(value, f"{label}, {key}" if label else key)


# WordNet: "offset lexical-file part-of-speech count word id word id ... | gloss".
CLOSED_SUBJECTS = {"08", "23", "26"}  # noun.body, noun.quantity and noun.state: near to medicine and mathematics
_SYNSET = re.compile(r"^\d{8} (?P<file>\d\d) \w (?P<count>[0-9a-f]{2}) (?P<rest>.*?) \| (?P<gloss>.*)$", re.MULTILINE)


def wordnet(name: str, database: str) -> Iterator[Document]:
    """Groups of consecutive synsets of one `data.*` file, the subjects nearest to the owners' left out."""
    yield from grouped(_synsets(database), f"wordnet/{name}", separator="\n")


def _synsets(database: str) -> Iterator[tuple[str, str]]:
    for match in _SYNSET.finditer(database):
        if match["file"] not in CLOSED_SUBJECTS:
            words = match["rest"].split()[: 2 * int(match["count"], 16) : 2]
            spoken = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words]
            yield words[0], f"{', '.join(spoken)}: {match['gloss'].strip()}."
