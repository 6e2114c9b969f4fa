"""Rows of JSON files: what a later line holds is its own affair, and a bad one is named."""

import bz2
import gzip
import json
import lzma
import tracemalloc
from pathlib import Path

import pytest

from motet.client.json_lines import json_rows
from motet.protocols.errors import DataError


def texts(path: Path, content: str | bytes) -> list[object]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [row.get("text") for _, row in json_rows(path, "text")]


@pytest.mark.parametrize(
    "late",
    [
        {"text": "late", "extra": 1},
        {"text": "late", "nested": {"b": 1}},
        {"text": "late", "nested": "now text"},
        {"text": "late", "id": "now text"},
    ],
    ids=["key", "nested key", "nested type", "type"],
)
def test_lines_far_apart_need_not_be_alike_and_are_not_kept(tmp_path: Path, late: dict[str, object]) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for number in range(240):
            file.write(json.dumps({"text": f"{number} " * 15_000, "id": number, "nested": {"a": number}}) + "\n")
        file.write(json.dumps(late) + "\n")
    assert path.stat().st_size > 10 << 20, "as many bytes as datasets looks at to tell what columns there are"
    tracemalloc.start()
    count, last = 0, None
    for place, row in json_rows(path, "text"):
        count, last = count + 1, (place, row)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, last) == (241, ("line 241", late))
    assert peak < 2 << 20


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{oops", "no JSON at character 2"),
        ("[1,2]", "list, wanted an object"),
        ('"abc"', "str, wanted an object"),
        ("null", "NoneType, wanted an object"),
        ('{"text": "cut o', "no JSON at character 10: Unterminated string"),
        ('{"text": "half \\ud83d"}', "half of a surrogate pair in 'text'"),
        ('{"text": ["a", {"b": "\\ude00"}]}', "half of a surrogate pair in 'text'"),
        (b'{"text": "caf\xe9"}', "bytes that are not UTF-8"),
        (b'{"text": "\xed\xa0\xbd"}', "bytes that are not UTF-8"),
        ('{"text": ' * 100_000, "JSON that cannot be held"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str | bytes, why: str) -> None:
    line = bad.encode() if isinstance(bad, str) else bad
    for end in (b"", b"\n", b'\n{"text": "c"}\n'):
        with pytest.raises(DataError, match=f"a.jsonl as JSON lines.*line 4: saw {why}"):
            texts(tmp_path / "a.jsonl", b'{"text": "a"}\n\n{"text": "b"}\n' + line + end)


def test_what_other_fields_hold_does_not_matter(tmp_path: Path) -> None:
    lines = '{"text": "a", "x": NaN}\n{"text": "b", "x": "\\ud83d"}\n{"id": 3}\n{"text": "first", "text": "last"}\n'
    assert texts(tmp_path / "a.jsonl", lines) == ["a", "b", None, "last"]
    session = {"id": "1", "source": "s", "model": "m", "system_prompt": "p", "messages": [], "text": "c"}
    assert texts(tmp_path / "a.jsonl", json.dumps(session)) == ["c"], "datasets takes such keys for an agent's trace"


def test_text_is_text_whatever_it_looks_like(tmp_path: Path) -> None:
    dates = [f"2024-01-{day:02} 10:00:00" for day in range(1, 29)]
    assert texts(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": date}) for date in dates)) == dates
    assert texts(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00 \\u0000\u2028x"}') == ["😀 \0\u2028x"]


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}, {"text": "b", "id": 3}]',
        json.dumps([{"text": "a"}, {"text": "b"}], indent=1),
        ' \n ["a",\n"b"]',
        json.dumps({"text": "a"}, indent=1) + "\n" + json.dumps({"text": "b"}, indent=1),
        '{ "text": "a",\n "id": 1}\n{"text": "b"}',
        '{"text": "a"}{"text": "b"}',
        '{"text": "a"}\r{"text": "b"}\r',
    ],
    ids=["array", "long array", "texts", "over lines", "begun", "one line", "old line ends"],
)
def test_rows_may_lie_otherwise_than_in_lines(tmp_path: Path, content: str) -> None:
    assert texts(tmp_path / "a.json", content) == ["a", "b"]


def test_what_is_wrong_in_an_array_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="item 2: saw int, wanted an object"):
        texts(tmp_path / "a.json", '[{"text": "a"}, 3]')
    with pytest.raises(DataError, match="line 3: saw no JSON at character 2"):
        texts(tmp_path / "a.json", '[{"text": "a"},\n{"text": "b"},\n{oops]')
    with pytest.raises(DataError, match="line 2: saw bytes that are not UTF-8"):
        texts(tmp_path / "a.json", b'[{"text": "a"},\n"\xff"]')
    assert texts(tmp_path / "a.json", "[]") == []


@pytest.mark.parametrize(("end", "pack"), [("gz", gzip.compress), ("BZ2", bz2.compress), ("xz", lzma.compress)])
def test_packed_files_are_unpacked_and_damaged_ones_are_named(tmp_path: Path, end: str, pack) -> None:
    path = tmp_path / f"a.jsonl.{end}"
    packed = pack(b'{"text": "a"}\n' * 50)
    assert texts(path, packed) == ["a"] * 50
    for damaged in (packed[:-6], b"no " + packed, packed[:20] + b"\xff" * 8 + packed[28:]):
        with pytest.raises(DataError, match=r"cannot read .*a\.jsonl\."):
            texts(path, damaged)
