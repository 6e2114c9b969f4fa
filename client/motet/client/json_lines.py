"""Rows of JSON files, each by itself: a line may have other keys than the lines before it, or values of other types.

Guarantees: one line is in memory at a time; what is no object in UTF-8 is refused with its line, the last one that was
cut off included. A file that is one array, or objects over several lines, is read whole. Of a key that a row has twice
the last value counts, as in most readers (RFC 8259, section 4). Blank lines are no rows.

    for place, row in json_rows(path, "text"):     # path may end in .gz, .bz2 or .xz
        print(place, row.get("text"))                # "line 3", or "item 3" of an array
"""

import bz2
import codecs
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from motet.protocols.errors import DataError

UNPACKED_BY: Mapping[str, Callable[[Path], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item] # without a mode they read bytes
"""What opens a packed file, by the end of its name."""

Row = dict[str, Any]

_OPENS_MORE = re.compile(rb"\s*\[|.*[\[{,]\s*\Z", re.DOTALL)
"""A first line that says that the rows are no lines: an array, or an object that goes on below."""
_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode


def json_rows(path: Path, field: str) -> Iterator[tuple[str, Row]]:
    """Every row of a file and its place in it, such as "line 3".

    Args:
        path: JSON lines, or one array of objects or of texts, which then are rows with nothing but "text".
        field: what is wanted of the rows; whether anything else in them is text that can be encoded does not matter.

    Raises:
        DataError: the file cannot be read or unpacked, or a row is malformed, no object, or not UTF-8.
    """
    for place, value in _placed(path):
        if not isinstance(value, dict):
            raise _malformed(path, place, f"{type(value).__name__}, wanted an object")
        try:
            json.dumps(value.get(field), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _malformed(path, place, f"half of a surrogate pair in {field!r}, wanted characters") from error
        yield place, value


def _placed(path: Path) -> Iterator[tuple[str, object]]:
    try:
        with UNPACKED_BY.get(path.suffix.lower(), _plain)(path) as file:
            yield from _values(path, file)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"cannot read {path} ({error}); mend it, or leave it out of [data] files") from error


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _values(path: Path, file: IO[bytes]) -> Iterator[tuple[str, object]]:
    begun = False
    for number, line in enumerate(file, start=1):
        data = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not data.strip():
            continue
        if not begun and _OPENS_MORE.match(data):
            yield from _items(_decoded(path, data + file.read(), number))
            return
        begun = True
        for value in _decoded(path, data, number):
            yield f"line {number}", value


def _items(values: Iterator[object]) -> Iterator[tuple[str, object]]:
    """What an array holds, or values that follow one another."""
    number = 0
    for value in values:
        for item in value if isinstance(value, list) else [value]:
            number += 1
            yield f"item {number}", {"text": item} if isinstance(item, str) else item


def _decoded(path: Path, data: bytes, number: int) -> Iterator[object]:
    """The values in some lines, the first of which has this number."""
    try:
        text = data.rstrip().decode()
    except UnicodeDecodeError as error:
        before = data.count(b"\n", 0, error.start)
        raise _malformed(path, f"line {number + before}", "bytes that are not UTF-8") from error
    at = _after_space(text, 0)
    while at < len(text):
        try:
            value, at = _decode(text, at)
        except json.JSONDecodeError as error:
            place = f"line {number + error.lineno - 1}"
            raise _malformed(path, place, f"no JSON at character {error.colno}: {error.msg}") from error
        except (RecursionError, ValueError) as error:  # nested too deeply, or a number of too many digits
            raise _malformed(path, f"line {number}", f"JSON that cannot be held: {error}") from error
        yield value
        at = _after_space(text, at)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _malformed(path: Path, place: str, saw: str) -> DataError:
    return DataError(f"cannot read {path} as JSON lines in UTF-8: {place}: saw {saw}; correct it, or leave it out")
