"""Documents: one canonical form, strict parsing, errors that name the place."""

import errno
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from motet.protocols.canonical import (
    bytes_digest,
    canonical_json,
    digest_of,
    file_digest,
    hex_of,
    storage_errors,
    write_atomically,
)
from motet.protocols.charter import AnchorPin, Charter
from motet.protocols.codec.frames import FrameWriter
from motet.protocols.codec.header import Header
from motet.protocols.contribution import RESERVED_NAMES, Contribution, JoinRequest, Score
from motet.protocols.documents import MAX_DOCUMENT_BYTES, Document, read_toml
from motet.protocols.errors import ConfigurationError, DocumentError, StorageError
from motet.protocols.report import row_names
from motet.protocols.report_page import Column, page_of
from motet.protocols.tensor_files import TensorWriter

ZEROS = "sha256:" + "0" * 64
OWNER = "ed25519:" + "a" * 64
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


class Note(Document):
    """A document of this test."""

    schema_: Literal["motet.note/1"] = Field("motet.note/1", alias="schema")
    text: str
    weight: float = 1.0
    words: dict[str, float] = Field(default_factory=dict)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_canonical_json_is_json_and_a_fixed_point(value: object) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data


@given(st.dictionaries(st.text(), st.integers(), max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, int], random: object) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert digest_of(dict(items)) == digest_of(value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_have_no_canonical_form(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": number})


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.dictionaries(st.text(), st.floats(0, 1)))
def test_a_document_survives_the_journey(text: str, weight: float, words: dict[str, float]) -> None:
    note = Note(text=text, weight=weight, words=words)
    again = Note.parse(note.canonical())
    assert again == note
    assert again.digest == note.digest == digest_of(json.loads(note.canonical()))


def test_the_canonical_form_is_pinned_across_releases() -> None:
    """Signatures and digests of every federation hang on these bytes."""
    note = Note(text="Grüße\n", weight=0.5, words={"b": 1.0, "a": 2})
    assert note.canonical() == (
        '{"schema":"motet.note/1","text":"Grüße\\n","weight":0.5,"words":{"a":2.0,"b":1.0}}'.encode()
    )
    assert note.digest == "sha256:60e71365295bc10909ec62866c45e1cc7d6aa198e9906d0a22d37f4699e85071"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "object"),
        (b'{"text":"a","extra":1}', "extra: Extra inputs"),
        (b'{"text":"a","schema":"motet.note/2"}', "schema"),
        (b'{"text":"a","weight":1e999}', "weight: Input should be a finite number"),
        (b'{"text":"a","weight":NaN}', "weight"),
        (b'{"text":"a","words":{"x":-1e999}}', r"words\.x"),
        (b'{"weight":"x"}', "and 1 more"),
        (b'{"text":"' + b"x" * MAX_DOCUMENT_BYTES + b'"}', "wanted at most"),
        (b"\xff\xfe", "Invalid JSON"),
    ],
)
def test_what_does_not_parse_says_where(data: bytes, problem: str) -> None:
    with pytest.raises(DocumentError, match=problem):
        Note.parse(data)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_document_error(data: bytes) -> None:
    with pytest.raises(DocumentError):
        Contribution.parse(data)


def test_documents_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Note(text="a").text = "b"


@pytest.mark.parametrize("name", ["", "Medicine", "1st", "a/b", "../x", "a b", "a" * 64, "a\n", "anchor", "average"])
def test_names_that_would_not_be_safe(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        JoinRequest(charter=ZEROS, name=name, owner=OWNER, flower_key="")


@pytest.mark.parametrize("digest", ["", "0" * 64, "sha256:" + "A" * 64, "sha256:" + "0" * 63, ZEROS + "\n", "md5:0"])
def test_digests_that_are_none(digest: str) -> None:
    with pytest.raises(ValueError, match="charter"):
        JoinRequest(charter=digest, name="a", owner=OWNER, flower_key="")


def test_scores_are_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        Score(nats=math.inf, bytes=1, documents=1, bits_per_byte_variance=0)


def test_no_expert_is_called_as_a_row_or_a_column_of_the_report() -> None:
    score = Score(nats=1.0, bytes=1, documents=1, bits_per_byte_variance=0)
    measured = Column(rows=dict.fromkeys(row_names(("law",)), score))
    page = page_of({"public": measured, "law": measured}, ["law"])
    taken = {*page.systems, *page.systems["anchor"]} - {"law"}
    assert {name for name in taken if ":" not in name} == set(RESERVED_NAMES)


def charter() -> Charter:
    return Charter(
        name="test",
        anchor=AnchorPin(digest=ZEROS, statistics=ZEROS, public_text=ZEROS, bundle=ZEROS),
        addresses={"data_plane": "a.example:1", "flower": "a.example:2"},
        coordinator=OWNER,
        certificate_authority=PEM,
    )


def test_a_charter_survives_toml(tmp_path: Path) -> None:
    path = tmp_path / "charter.toml"
    path.write_text(charter().to_toml())
    assert Charter.from_toml(path) == charter()


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ('name = "test"', 'name = "Test"', "name"),
        ("public_share = 0.25", "public_share = 1.5", "training.public_share"),
        ("public_share = 0.25", "public_shares = 0.25", "training.public_shares"),
        ("public_share = 0.25", "public_share = nan", "training.public_share"),
        ("-----BEGIN CERTIFICATE", "-----BEGIN PRIVATE KEY", "wanted a PEM certificate"),
        ("a.example:1", "a.example", "addresses.data_plane"),
        ('name = "test"', "name = test", "not readable TOML"),
    ],
)
def test_a_mistake_in_a_charter_is_named(tmp_path: Path, before: str, after: str, problem: str) -> None:
    path = tmp_path / "charter.toml"
    text = charter().to_toml()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(ConfigurationError, match=problem):
        Charter.from_toml(path)


def test_a_missing_toml_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="saw no file"):
        read_toml(tmp_path / "none.toml")


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    assert file_digest(path) == "sha256:3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
    assert hex_of(file_digest(path)) == file_digest(path)[7:]


def test_a_read_only_disk_is_a_storage_error(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(StorageError, match="free space there or choose another folder"), storage_errors(tmp_path):
        fail()
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        (tmp_path / "none").read_bytes()


def test_where_no_file_can_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file/x", tmp_path / "file/x/y", Path("/proc/x"), tmp_path / ("x" * 300)):
        with pytest.raises(StorageError, match=f"cannot write {path}"):
            write_atomically(path, b"")
        with pytest.raises(StorageError, match=f"cannot write {path}"):
            TensorWriter(path, [])
        with pytest.raises(StorageError, match=f"cannot write {path}"):
            FrameWriter(path, Header(anchor=bytes_digest(b""), tensors=()))


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    header = Header(anchor=bytes_digest(b""), tensors=())
    writers = [lambda: FrameWriter(tmp_path / "u[1]", header), lambda: TensorWriter(tmp_path / "u[1]", [])]
    for make in writers:
        (tmp_path / ".u[1].0123456789ab.tmp").write_bytes(b"left")
        (tmp_path / ".u1.0123456789ab.tmp").write_bytes(b"another's")
        with make():
            held = set(tmp_path.glob(".u[[]1].*.tmp"))
            assert len(held) == 1
            with make():
                assert held < set(tmp_path.glob(".u[[]1].*.tmp"))
        assert sorted(path.name for path in tmp_path.iterdir()) == [".u1.0123456789ab.tmp", "u[1]"]
    killed = (
        "import os, sys; from pathlib import Path; from motet.protocols.tensor_files import TensorWriter\n"
        "writer = TensorWriter(Path(sys.argv[1]), []); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "v")], check=False)
    assert len(list(tmp_path.glob(".v.*.tmp"))) == 1
    TensorWriter(tmp_path / "v", []).close()
    assert list(tmp_path.glob(".v*")) == []
