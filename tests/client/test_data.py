"""Reading, cleaning and splitting an owner's text; everything that can be wrong with it is named."""

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path

import pytest

from motet.client.data import PART_BYTES, Corpus, _documents, load_corpus, load_public
from motet.client.owner import DataConfig
from motet.protocols.canonical import file_digest
from motet.protocols.errors import DataError

CONFIG = DataConfig(files=("*",))
WORDS = [f"word{number}" for number in range(900)]


def texts(count: int, start: int = 0) -> list[str]:
    return [" ".join(random.Random(seed).choices(WORDS, k=30)) for seed in range(start, start + count)]


def write_jsonl(path: Path, documents: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": 1, field: text}) + "\n" for text in documents), encoding="utf-8")
    return path


def load(folder: Path, *files: str, **changes: object) -> Corpus:
    return load_corpus(DataConfig(files=files or ("*",), **{"held_out_share": 0.3} | changes), folder)


def test_formats_give_the_same_documents(tmp_path: Path) -> None:
    from datasets import Dataset

    documents = texts(40)
    for folder in ("jsonl", "parquet", "text"):
        (tmp_path / folder).mkdir()
    write_jsonl(tmp_path / "jsonl" / "a.jsonl", documents)
    Dataset.from_dict({"text": documents}).to_parquet(tmp_path / "parquet" / "a.parquet")
    for number, text in enumerate(documents):
        (tmp_path / "text" / f"{number:03}.txt").write_text(text)
    corpora = [load(tmp_path / folder) for folder in ("jsonl", "parquet", "text")]
    assert corpora[0] == corpora[1] == corpora[2]
    assert sorted(corpora[0].train + corpora[0].held_out) == sorted(documents)
    assert corpora[0].held_out


def test_adding_documents_moves_none(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", texts(60))
    before = load(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", texts(60, start=100))
    after = load(tmp_path)
    assert set(before.train) <= set(after.train)
    assert set(before.held_out) <= set(after.held_out)


def test_near_duplicates_never_lie_on_both_sides(tmp_path: Path) -> None:
    originals = texts(80)
    write_jsonl(tmp_path / "a.jsonl", originals + [text + " edited" for text in originals] + originals)
    corpus = load(tmp_path)
    stems = [text.removesuffix(" edited") for text in corpus.train + corpus.held_out]
    assert sorted(stems) == sorted(originals)
    assert corpus.read == 160


def test_the_parts_of_a_long_file_stay_on_one_side(tmp_path: Path) -> None:
    for number in range(12):
        paragraphs = "\n\n".join(f"file{number} {text}" for text in texts(60, start=1000 * number))
        (tmp_path / f"{number}.txt").write_text(paragraphs)
    corpus = load(tmp_path)
    sides = [{text.split()[0] for text in side} for side in (corpus.train, corpus.held_out)]
    assert len(corpus.train) > 12
    assert not sides[0] & sides[1]
    assert all(len(text.encode()) <= 2 * PART_BYTES for text in corpus.train)


def test_a_sample_is_the_same_whatever_the_files(tmp_path: Path) -> None:
    documents = texts(200)
    write_jsonl(tmp_path / "a.jsonl", documents)
    whole = load(tmp_path, max_bytes=8000)
    (tmp_path / "a.jsonl").unlink()
    write_jsonl(tmp_path / "z.jsonl", documents[:90])
    write_jsonl(tmp_path / "b.jsonl", documents[90:])
    parts = load(tmp_path, max_bytes=8000)
    assert set(whole.train) == set(parts.train)
    assert 7000 < sum(len(text) for text in whole.train + whole.held_out) <= 8000


def test_another_seed_holds_out_others(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts(60))
    assert set(load(tmp_path).held_out) != set(load(tmp_path, seed=1).held_out)


def test_odd_file_names_are_names_not_patterns(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a[1] copy.jsonl", texts(40))
    assert load(tmp_path).read == 40


def test_text_is_not_copied_into_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "own").mkdir()
    write_jsonl(tmp_path / "own" / "a.jsonl", texts(40))
    load(tmp_path / "own")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.jsonl", b'{"text": "fine"}\nnot json\n', "as JSON lines.*line 2: saw no JSON"),
        ("a.jsonl", b'{"text": "\xff\xfe"}\n', "not UTF-8"),
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.parquet", b"PAR1 but not really", "as a Parquet file"),
        ("a.jsonl", b'{"body": "x"}\n', "no field 'text'.*body"),
        ("a.jsonl", b"{}\n", "no field 'text'.*empty objects"),
        ("a.jsonl", b'{"id": 1}\n{"text": 5}\n', "line 2: saw int"),
        ("a.jsonl", b'{"text": null}\n{"text": " "}\n', "saw no text"),
        ("a.jsonl", b"", "saw no text"),
        ("a.txt", b" \n\n ", "saw no text"),
    ],
)
def test_unusable_data_is_named(tmp_path: Path, name: str, content: bytes, wanted: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=wanted) as caught:
        load(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_rows_without_the_field_are_left_out_where_others_have_it(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts(30))
    before = load(tmp_path)
    lines = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text('{"id": 0}\n' + lines + '{"id": 31, "title": "none"}\n')
    assert load(tmp_path) == before


def test_a_pattern_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'notes/\*\.txt'"):
        load(tmp_path, "notes/*.txt")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"a\.jsonl"):
        load(tmp_path)


def test_too_little_text_to_hold_any_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts(1) * 5)
    with pytest.raises(DataError, match=r"distinct documents.*wanted both"):
        load(tmp_path)


def test_the_public_text_must_be_the_pinned_one(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "public.jsonl", texts(60))
    corpus = load_public(path, expect=file_digest(path))
    assert len(corpus.train) + len(corpus.held_out) == 60
    with pytest.raises(DataError, match="wanted sha256:0000"):
        load_public(path, expect="sha256:" + "0" * 64)
    with pytest.raises(DataError, match="fetch the anchor again"):
        load_public(tmp_path / "missing.jsonl")


def test_public_text_is_read_line_by_line_as_it_stands(tmp_path: Path) -> None:
    rows = [{"text": f"2024-{month:02}-{day:02}"} for month in range(1, 13) for day in range(1, 21)]
    late = [{"text": "late", "nested": {"n": 1}}, {"text": "later", "nested": "text"}]
    (tmp_path / "public.jsonl").write_text("\n".join(json.dumps(row) for row in rows + late))
    corpus = load_public(tmp_path / "public.jsonl")
    assert {*corpus.train, *corpus.held_out} == {row["text"] for row in rows + late}


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_packed_files_are_what_their_inner_name_says(tmp_path: Path, suffix: str, compress) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    for folder in (plain, packed):
        folder.mkdir()
    content = write_jsonl(plain / "a.jsonl", texts(30)).read_bytes()
    (packed / f"a.jsonl{suffix}").write_bytes(compress(content))
    assert load(packed) == load(plain)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path, name: str) -> None:
    documents = texts(30)
    lines = [json.dumps({"text": text}) for text in documents] if name.endswith("jsonl") else documents
    for folder, start, end in (("unix", b"", "\n"), ("windows", b"\xef\xbb\xbf", "\r\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(start + "".join(line + end for line in lines).encode())
    found = [[each.text for each in _documents(tmp_path / folder / name, CONFIG)] for folder in ("unix", "windows")]
    assert found[0] == found[1]


def test_training_text_keeps_apart_from_text_that_is_scored(tmp_path: Path) -> None:
    documents = texts(60)
    write_jsonl(tmp_path / "a.jsonl", documents)
    corpus = load(tmp_path)
    apart = corpus.training_apart_from([*corpus.train[:5], *texts(5, start=500)])
    assert apart.train == corpus.train[5:]
    assert apart.held_out == corpus.held_out
    with pytest.raises(DataError, match="all of which repeat"):
        corpus.training_apart_from(corpus.train)
