"""Text with structure, so that the anchor has seen brackets, indentation, runs of symbols and tables before any owner.

A model that only knows prose pays seven to eight bits a byte for code and formulae, and any expert would look good
beside it. No source here is Python, set.mm or ICD-10-CM, and WordNet's meanings are cut off; `build.py` leaves out the
countries of the public slice. Nothing of it ships: only the tokenizer and the weights have seen it.

    factbook_forms(...)   a chapter about one country as JSON, YAML, a Markdown table or tab-separated values
    wordnet_lines(...)    lines of WordNet's database: offsets, words and pointers, without their meanings
    package_text(...)     files of a package, cut at line ends
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from render import CLOSED_SUBJECTS, Document, factbook_fields, grouped

Chapter = dict[str, Any]


def factbook_forms(path: str, profile: str) -> Iterator[Document]:
    """Each chapter of one country in one of the forms, chosen by country and chapter."""
    code = path.rsplit("/", 1)[-1].removesuffix(".json")
    for chapter, fields in json.loads(profile).items():
        form = _FORMS[zlib.crc32(f"{code}/{chapter}".encode()) % len(_FORMS)]
        yield from _cut(form(chapter, fields), f"factbook-{form.__name__.strip('_')}/{code}/{chapter}")


def _json_by_two(chapter: str, fields: Chapter) -> str:
    return json.dumps({chapter: fields}, indent=2, ensure_ascii=False)


def _json_by_four(chapter: str, fields: Chapter) -> str:
    named = {chapter.lower(): [{"name": name, "value": text} for name, text in factbook_fields(fields)]}
    return json.dumps(named, indent=4, ensure_ascii=False)


def _json_in_a_line(chapter: str, fields: Chapter) -> str:
    return "\n".join(json.dumps({"chapter": chapter, name: text}) for name, text in factbook_fields(fields))


def _yaml(chapter: str, fields: Chapter) -> str:
    return f"{_key(chapter)}:\n" + "\n".join(_yaml_lines(fields, "    "))


def _yaml_lines(node: Chapter, indent: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield f"{indent}{_key(key)}:"
            yield from _yaml_lines(value, indent + "    ")
        else:
            yield f"{indent}{_key(key)}: {json.dumps(value, ensure_ascii=False)}"


def _markdown(chapter: str, fields: Chapter) -> str:
    rows = "\n".join(f"| {name} | {text} |" for name, text in factbook_fields(fields))
    return f"## {chapter}\n\n| field | value |\n|---|---|\n{rows}"


def _tab_separated(chapter: str, fields: Chapter) -> str:
    return "\n".join(f"{_key(chapter)}\t{_key(name)}\t{text}" for name, text in factbook_fields(fields))


def _key(name: str) -> str:
    """A name as configuration files write it: lower case, words joined by underscores."""
    return "_".join("".join(each if each.isalnum() else " " for each in name.lower()).split())


_FORMS: tuple[Callable[[str, Chapter], str], ...] = (
    _json_by_two,
    _json_by_four,
    _json_in_a_line,
    _yaml,
    _markdown,
    _tab_separated,
)


def wordnet_lines(name: str, database: str) -> Iterator[Document]:
    """Consecutive lines of one `data.*` file, cut before the meaning; the subjects nearest to the owners' left out."""
    lines = (line.partition(" | ")[0] for line in database.splitlines() if line[:1].isdigit())
    kept = ((line[:8], line) for line in lines if line.split(" ", 2)[1] not in CLOSED_SUBJECTS)
    yield from grouped(kept, f"wordnet-lines/{name}", separator="\n")


def package_text(path: str, text: str) -> Iterator[Document]:
    """One file, indentation and blank lines kept."""
    yield from _cut(text, path)


def _cut(text: str, name: str) -> Iterator[Document]:
    lines = ((str(number), line) for number, line in enumerate(text.splitlines(), start=1))
    yield from grouped(lines, name, separator="\n")
