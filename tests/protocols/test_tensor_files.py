"""The streaming safetensors writer and reader: what goes in comes out, and nothing malformed is believed."""

import json
import resource
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from motet.protocols.errors import StorageError, TensorFileError
from motet.protocols.tensor_files import DTYPE_BYTES, TensorReader, TensorSpec, TensorWriter, read_header

TENSORS = {
    "a.weight": torch.arange(15, dtype=torch.float32).to(torch.bfloat16).reshape(3, 5),
    "b.weight": torch.randn(4, 2, generator=torch.Generator().manual_seed(0)),
    "c": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 3),
}
DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}
SPECS = [TensorSpec(name=name, dtype=DTYPES[t.dtype], shape=tuple(t.shape)) for name, t in TENSORS.items()]


def write_all(path: Path) -> Path:
    with TensorWriter(path, SPECS) as writer:
        for name, tensor in reversed(TENSORS.items()):
            writer.write_tensor(name, tensor)
    return path


def raw_file(path: Path, header: str | bytes, data: bytes = b"") -> Path:
    encoded = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def entry(start: int, end: int, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def test_safetensors_reads_what_the_writer_wrote(tmp_path: Path) -> None:
    read = load_file(write_all(tmp_path / "x.safetensors"))
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_the_reader_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    with TensorReader(tmp_path / "x.safetensors") as reader:
        for name, tensor in TENSORS.items():
            assert torch.equal(reader.tensor(name), tensor)
            chunks = list(reader.chunks(name, 4))
            assert all(len(chunk) <= 4 for chunk in chunks)
            assert b"".join(chunks) == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_equal_content_gives_equal_bytes_and_no_leftovers(tmp_path: Path) -> None:
    first, second = write_all(tmp_path / "1"), write_all(tmp_path / "2")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_an_unfinished_file_never_appears(tmp_path: Path) -> None:
    with pytest.raises(TensorFileError, match="were not written"), TensorWriter(tmp_path / "x", SPECS) as writer:
        writer.write_tensor("c", TENSORS["c"])
    with pytest.raises(KeyError), TensorWriter(tmp_path / "x", SPECS):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"1234567", b"123456789", [b"1234", b"56789"]])
def test_a_wrong_number_of_bytes_is_refused(tmp_path: Path, data: bytes | list[bytes]) -> None:
    with pytest.raises(TensorFileError, match="wanted 8"), TensorWriter(tmp_path / "x", SPECS) as writer:
        writer.write("c", data)


def test_a_tensor_is_written_once_and_only_if_announced(tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "x", [SPECS[2]]) as writer:
        writer.write_tensor("c", TENSORS["c"])
        for name, state in {"c": "written already", "d": "not announced"}.items():
            with pytest.raises(TensorFileError, match=state):
                writer.write(name, b"")
    with pytest.raises(TensorFileError, match="announced twice"):
        TensorWriter(tmp_path / "x", [*SPECS, SPECS[0]])


def test_a_disk_without_room_is_met_at_the_start(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="cannot write"):
            TensorWriter(tmp_path / "x", [TensorSpec(name="a", dtype="F32", shape=(1000, 1000))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b", "a\\b", "", ".a", "a..b", "a.", "a b", "a\n", "é", "a" * 513]
)
def test_path_like_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TensorFileError, match="tensor name"):
        read_header(raw_file(tmp_path / "x", json.dumps({name: entry(0, 1)}), b"1"))


HOSTILE = {
    "duplicate key": ('{"a":%s,"a":%s}' % ((json.dumps(entry(0, 1)),) * 2), b"1"),
    "duplicate field": ('{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"1"),
    "overlap": (json.dumps({"a": entry(0, 2), "b": entry(1, 3)}), b"123"),
    "same span": (json.dumps({"a": entry(0, 2), "b": entry(0, 2)}), b"12"),
    "gap": (json.dumps({"a": entry(0, 1), "b": entry(2, 3)}), b"123"),
    "leading gap": (json.dumps({"a": entry(1, 2)}), b"12"),
    "leftover": (json.dumps({"a": entry(0, 1)}), b"12"),
    "truncated": (json.dumps({"a": entry(0, 2)}), b"1"),
    "span and shape differ": (json.dumps({"a": entry(0, 2, shape=[3])}), b"12"),
    "negative": (json.dumps({"a": entry(0, 1, shape=[-1, -1])}), b"1"),
    "boolean size": (json.dumps({"a": entry(0, 1, shape=[True])}), b"1"),
    "float size": ('{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', b"1"),
    "unknown dtype": (json.dumps({"a": entry(0, 1, dtype="F4")}), b"1"),
    "unknown field": (json.dumps({"a": {**entry(0, 1), "x": 1}}), b"1"),
    "huge number": ('{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}}' % ("9" * 5000), b"1"),
    "deep nesting": ("[" * 100_000, b""),
    "no object": ("[]", b""),
    "no text": (b'{"\xff":1}', b""),
    "no JSON": ("{}x", b""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(TensorFileError):
        read_header(raw_file(tmp_path / "x", *HOSTILE[case]))


@pytest.mark.parametrize("content", [b"", b"1234", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(TensorFileError, match="header of"):
        read_header(tmp_path / "x")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_][a-z0-9_]{0,8}(\.[a-z0-9]{1,4}){0,3}", fullmatch=True),
        st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
def test_any_layout_survives_the_round_trip(tmp_path_factory: pytest.TempPathFactory, content: dict) -> None:
    path = tmp_path_factory.mktemp("layout") / "x.safetensors"
    specs = [TensorSpec(name=name, dtype=dtype, shape=tuple(shape)) for name, (dtype, shape) in content.items()]
    with TensorWriter(path, specs) as writer:
        for number, spec in enumerate(specs):
            writer.write(spec.name, bytes([number]) * spec.nbytes)
    with TensorReader(path) as reader:
        assert set(reader.specs) == set(specs)
        for number, spec in enumerate(specs):
            assert b"".join(reader.chunks(spec.name)) == bytes([number]) * spec.nbytes
            assert reader.header[spec.name].offset % DTYPE_BYTES[spec.dtype] == 0


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_raise_the_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = raw_file(tmp_path_factory.mktemp("noise") / "x", content)
    try:
        read_header(path)
    except TensorFileError:
        return
