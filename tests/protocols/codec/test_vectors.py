"""The vectors in tests/vectors, which every version of the codec decodes alike."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from motet.protocols.codec import CodecSettings, FileSource, UpdateReader, apply, encode, verify
from motet.protocols.codec.changes import words_of
from motet.protocols.codec.frames import FrameReader
from motet.protocols.codec.kernels import Kernels
from motet.protocols.codec.native_kernels import NativeKernels
from motet.protocols.codec.numpy_kernels import NumpyKernels
from motet.protocols.tensor_files import TensorReader, TensorSpec

from . import reference

HERE = Path(__file__).parents[2] / "vectors"
INDEX = json.loads((HERE / "index.json").read_text())
every = pytest.mark.parametrize("name", INDEX)
each = pytest.mark.parametrize("kernels", [NumpyKernels(), NativeKernels()], ids=lambda kernels: kernels.path)


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    with TensorReader(path) as reader:
        return {
            spec.name: words_of(b"".join(reader.chunks(spec.name)), spec.dtype).reshape(spec.shape)
            for spec in reader.specs
        }


def specs_of(path: Path) -> tuple[TensorSpec, ...]:
    with TensorReader(path) as reader:
        return reader.specs


def encoded(name: str, path: Path) -> Path:
    """The vector's source, encoded as it was then."""
    entry = INDEX[name]
    settings, anchor, base = CodecSettings(**entry["settings"]), entry["anchor"], entry["base"]
    with FileSource(HERE / entry["source"]) as source:
        encode(path, source, source.specs, settings, anchor=anchor, base=base, chunk_values=entry["chunk_values"])
    return path


def test_every_file_is_in_the_index_and_all_are_small() -> None:
    names = {path.stem for path in HERE.glob("*.motetup")}
    assert names == {*INDEX, "application"}
    assert sum(path.stat().st_size for path in HERE.iterdir() if path.is_file()) < 250_000


@every
@each
def test_a_vector_decodes_to_its_values(name: str, kernels: Kernels) -> None:
    entry, path = INDEX[name], HERE / f"{name}.motetup"
    wanted, expected = specs_of(HERE / entry["source"]), tensors_of(HERE / entry["decoded"])
    with UpdateReader(path, wanted=wanted, anchor=entry["anchor"], base=entry["base"], paths=kernels) as update:
        assert update.header.chunk_values == entry["chunk_values"]
        for spec in wanted:
            found = update.tensor(spec.name)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected[spec.name])
            assert hashlib.sha256(found.astype("<f4").tobytes()).hexdigest() == entry["decoded_sha256"][spec.name]
    verify(path)


@every
def test_the_format_page_alone_is_enough_to_decode_a_vector(name: str) -> None:
    header, values = reference.decode((HERE / f"{name}.motetup").read_bytes())
    assert (header["anchor"], header.get("base")) == (INDEX[name]["anchor"], INDEX[name]["base"])
    expected = tensors_of(HERE / INDEX[name]["decoded"])
    assert values.keys() == expected.keys()
    for tensor, found in values.items():
        np.testing.assert_array_equal(found, expected[tensor].reshape(-1))


@every
def test_encoding_again_gives_the_same_values(name: str, tmp_path: Path) -> None:
    expected = tensors_of(HERE / INDEX[name]["decoded"])
    with UpdateReader(encoded(name, tmp_path / "u")) as update:
        for spec in update.specs:
            found = update.tensor(spec.name)
            assert np.array_equal(found == 0, expected[spec.name] == 0)
            np.testing.assert_allclose(found, expected[spec.name], rtol=1e-6)  # a scale is a sum of floats


@every
def test_payloads_without_deflate_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    with FrameReader(encoded(name, tmp_path / "u")) as reader:
        frames, tensors = list(reader.copy_frames()), reader.header.tensors
    free = {tensor.name for tensor in tensors if tensor.method in ("raw", "int8", "int4")}
    assert free == INDEX[name]["payloads_sha256"].keys()
    for tensor, wanted in INDEX[name]["payloads_sha256"].items():
        payloads = b"".join(payload for index, _, payload in frames if tensors[index].name == tensor)
        assert hashlib.sha256(payloads).hexdigest() == wanted


@each
def test_the_rule_of_application(kernels: Kernels) -> None:
    anchor, expert = (HERE / f"application.{part}.safetensors" for part in ("anchor", "expert"))
    expected = tensors_of(expert)
    with UpdateReader(HERE / "application.motetup", paths=kernels) as update, TensorReader(anchor) as stored:
        whole = apply(update, lambda spec, *_: b"".join(stored.chunks(spec.name)), specs_of(anchor))
        made = {spec.name: words for spec, _, words in whole}
    assert {name: words.tobytes() for name, words in made.items()} == {
        name: words.tobytes() for name, words in expected.items()
    }
    assert len(made) == 3
