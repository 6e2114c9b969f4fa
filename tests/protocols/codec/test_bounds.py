"""What the worst files may cost: memory and time, whatever they say of themselves."""

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from motet.protocols.codec import UpdateReader
from motet.protocols.codec.header import MAX_CHUNKS
from motet.protocols.codec.kernels import PATH_VARIABLE
from motet.protocols.tensor_files import TensorSpec

from .surgery import Frame, canonical, deflate, file_of, head_of, signed, sized

CHUNK = 1 << 22
HEADER_LIMIT = 1 << 20
NUMPY = {**os.environ, PATH_VARIABLE: "numpy"}
"""What a coordinator reads strangers' files with."""

LOOK = """
import json, sys, time
from pathlib import Path
from motet.protocols.codec import UpdateReader, apply, describe, verify
from motet.protocols.codec.numpy_kernels import NumpyKernels
from motet.protocols.errors import CodecError
from motet.protocols.tensor_files import DTYPE_BYTES

def look(path):
    verify(path)
    describe(path)
    with UpdateReader(path, paths=NumpyKernels()) as update:
        stored = lambda spec, start, count: bytes(count * DTYPE_BYTES[spec.dtype])
        for _ in apply(update, stored, update.specs):
            pass

def peak():
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent had
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

look(Path(sys.argv[1]))  # to warm up
base = peak()
for path in map(Path, sys.argv[2:]):
    started = time.monotonic()
    try:
        look(path)
        said = ""
    except CodecError as error:
        said = str(error)
    print(json.dumps({"name": path.stem, "said": said, "mb": peak() - base, "s": time.monotonic() - started}))
"""


def compressed(data: bytes | np.ndarray) -> bytes:
    """A deflated section, made as small as any coder makes it."""
    return sized(deflate(bytes(data), strategy=zlib.Z_DEFAULT_STRATEGY))


def head(tensors: str, more: str = "") -> bytes:
    anchor = "sha256:" + "a" * 64
    return (
        f'{{"anchor":"{anchor}",{more}"chunk_values":4194304,"schema":"motet.update/1","tensors":{tensors}}}'.encode()
    )


def headers() -> Iterator[tuple[str, bytes]]:
    """Headers of up to a megabyte, each made to cost its reader as much as it can."""
    raw = '{"dtype":"F32","method":"raw","name":"%s","shape":[1]}'
    yield "tensors", head("[" + ",".join(raw % f"n{index}" for index in range(8193)) + "]")
    yield "empty tensors", head("[" + ",".join(["{}"] * 300_000) + "]")
    yield "unknown keys", ("{" + ",".join(f'"{index}":0' for index in range(100_000)) + "}").encode()
    yield "unknown keys of a tensor", head("[{" + ",".join(f'"{index}":0' for index in range(90_000)) + "}]")
    yield "the same key", b"{" + b'"tensors":[],' * 70_000 + b'"tensors":[]}'
    yield "nested lists", b"[" * HEADER_LIMIT
    yield "nested objects", b'{"a":' * (HEADER_LIMIT // 5)
    yield "nested in a tensor", head("[" * 180 + "]" * 180)
    yield "digits", head('[{"dtype":"F32","method":"raw","name":"a","shape":[' + "9" * 1_000_000 + "]}]")
    yield (
        "many digits",
        head('[{"dtype":"F32","method":"raw","name":"a","shape":[' + ",".join(["9" * 4000] * 200) + "]}]"),
    )
    yield "fraction", head('[{"dtype":"F32","method":"raw","name":"a","scale":0.' + "9" * 1_000_000 + ',"shape":[1]}]')
    yield "shape", head('[{"dtype":"F32","method":"raw","name":"a","shape":[' + ",".join(["1"] * 500_000) + "]}]")
    yield "name", head("[" + raw % ("a" * 1_000_000) + "]")
    yield "escapes", head("[]", '"%s":1,' % ("k\\u001b" * 140_000))
    yield "no text", b"\xff\xfe" * (HEADER_LIMIT // 2)
    yield "zeros", bytes(HEADER_LIMIT)
    yield "lists", b"[" + b"[]," * 340_000 + b"[]]"


def hostile_headers() -> Iterator[tuple[str, bytes]]:
    for name, text in headers():
        assert len(text) <= HEADER_LIMIT
        yield f"header, {name}", file_of(text, [])
    bomb = deflate(bytes(1 << 26), strategy=zlib.Z_DEFAULT_STRATEGY)
    prefix = b"MOTETUP1" + struct.pack("<III", HEADER_LIMIT, len(bomb), zlib.crc32(bomb))
    yield "header, bomb", signed(prefix + bomb)


def chunk_file(payload: bytes, *, shape: list[int], chunks: int = 1, **tensor: Any) -> bytes:
    tensor = {"dtype": "BF16", "name": "a", "shape": [chunks * shape[0], *shape[1:]], **tensor}
    header = {"anchor": "sha256:" + "a" * 64, "chunk_values": CHUNK, "schema": "motet.update/1", "tensors": [tensor]}
    return file_of(canonical(header), [Frame(tensor=0, number=at, payload=payload).bytes() for at in range(chunks)])


def sound_but_large() -> Iterator[tuple[str, bytes]]:
    """Chunks of the largest size in which everything is kept: small files, sound, dear to decode; several of each."""
    every = struct.pack("<BII", 0, CHUNK, CHUNK) + compressed(bytes(CHUNK)) + bytes(CHUNK // 8)
    bitmap = struct.pack("<BI", 1, CHUNK) + compressed(b"\xff" * (CHUNK // 8)) + bytes(CHUNK // 8)
    ternary, levels = {"method": "ternary", "scale": 1.0}, {"method": "levels", "scale": 1.0}
    yield "kept, gaps", chunk_file(b"\0" + every, shape=[1024, 4096], chunks=5, **ternary)
    yield "kept, bitmap", chunk_file(b"\0" + bitmap, shape=[1024, 4096], chunks=5, **ternary)
    yield "kept, levels", chunk_file(b"\0" + every + compressed(bytes(CHUNK)), shape=[1024, 4096], chunks=5, **levels)
    half = struct.pack("<BII", 0, CHUNK // 2, CHUNK // 2) + compressed(bytes(CHUNK // 2)) + bytes(CHUNK // 16)
    rows = compressed(np.resize(np.array([0, 128], np.uint8), CHUNK)) + compressed(
        np.resize([0, 1], CHUNK).astype(np.uint8)
    )
    short = b"\3" + rows + struct.pack("<BI", 0, 0) + half
    yield "kept, short rows", chunk_file(short, shape=[CHUNK, 1], chunks=4, row_scales=True, **ternary)
    planes = compressed(bytes(CHUNK)) + bytes(CHUNK)
    yield "lossless", chunk_file(planes, shape=[1024, 4096], chunks=5, method="lossless")
    yield "int4", chunk_file(bytes(CHUNK // 4 + CHUNK // 2), shape=[1024, 4096], chunks=5, method="int4", block=8)
    yield "int8", chunk_file(bytes(CHUNK // 4 + CHUNK), shape=[1024, 4096], chunks=5, method="int8", block=8)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Sections that inflate to more than they should, in chunks that say as little or as much as they may."""
    bomb = compressed(bytes(1 << 26))
    ternary = {"method": "ternary", "scale": 1.0}
    for size in (1024, CHUNK):
        shape = [max(1, size // 4096), min(size, 4096)]
        gaps = struct.pack("<BII", 0, size, size)
        yield f"bomb, gaps of {size}", chunk_file(b"\0" + gaps + bomb, shape=shape, **ternary)
        yield f"bomb, bitmap of {size}", chunk_file(b"\0" + struct.pack("<BI", 1, size) + bomb, shape=shape, **ternary)
        yield f"bomb, class map of {size}", chunk_file(b"\2" + bomb, shape=shape, **ternary)
        yield f"bomb, row scales of {size}", chunk_file(b"\1" + bomb, shape=shape, row_scales=True, **ternary)
        levels = b"\0" + gaps + compressed(bytes(size)) + bytes(size // 8) + bomb
        yield f"bomb, levels of {size}", chunk_file(levels, shape=shape, method="levels", scale=1.0)
        yield f"bomb, exponents of {size}", chunk_file(bomb + bytes(size), shape=shape, method="lossless")
    labels = compressed(np.resize(np.arange(256, dtype=np.uint8), CHUNK))
    yield "bomb, many classes", chunk_file(b"\2" + labels + b"\0\0\0\0\0" * 256, shape=[CHUNK, 1], **ternary)
    claims = head('[{"dtype":"BF16","method":"ternary","name":"a","scale":1.0,"shape":[262144,4194304]}]')
    yield "bomb, a terabyte claimed", signed(head_of(claims) + Frame(tensor=0, number=0, payload=b"\0" * 6).bytes())


def looked_at(folder: Path, files: Iterator[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """What a child reports that opens, verifies, describes and applies each file."""
    paths = []
    for name, data in files:
        paths.append(folder / f"{name}.motetup")
        paths[-1].write_bytes(data)
    sound = Path(__file__).parents[2] / "vectors" / "ternary-class-map-row-scales.motetup"
    command = [sys.executable, "-c", LOOK, str(sound), *map(str, paths)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True, env=NUMPY)
    assert child.stderr == ""
    return [json.loads(line) for line in child.stdout.splitlines()]


def check_cost(found: list[dict[str, Any]], *, mb: float) -> None:
    for file in found:
        assert file["s"] < 60, file  # not a speed: a hang
        assert file["mb"] < mb, file


def test_headers_that_cost_as_much_as_they_can(tmp_path: Path) -> None:
    found = looked_at(tmp_path, hostile_headers())
    check_cost(found, mb=256)
    assert all(file["said"].startswith(f"{file['name']}.motetup: header: ") for file in found)


@pytest.mark.slow
def test_sections_that_inflate_without_end(tmp_path: Path) -> None:
    found = looked_at(tmp_path, bombs())
    check_cost(found, mb=256)
    assert all(file["said"].startswith(f"{file['name']}.motetup: a, chunk 0: ") for file in found[:-1]), found
    assert found[-1]["said"].startswith("bomb, a terabyte claimed.motetup: header: ")


@pytest.mark.slow
def test_the_largest_chunks_in_which_everything_is_kept(tmp_path: Path) -> None:
    found = looked_at(tmp_path, sound_but_large())
    check_cost(found, mb=256)
    assert all(file["said"] == "" for file in found), found


def test_as_many_chunks_as_a_file_may_have(tmp_path: Path) -> None:
    spec = TensorSpec(name="a", dtype="BF16", shape=(MAX_CHUNKS, 1024))
    tensor = {"dtype": "BF16", "method": "ternary", "name": "a", "scale": 1.0, "shape": spec.shape}
    header = {"anchor": "sha256:" + "a" * 64, "chunk_values": 1024, "schema": "motet.update/1", "tensors": [tensor]}
    frames = [Frame(tensor=0, number=at, payload=b"\0" * 6).bytes() for at in range(MAX_CHUNKS)]
    path = tmp_path / "many.motetup"
    path.write_bytes(file_of(canonical(header), frames))
    with UpdateReader(path, wanted=[spec]) as update:
        assert next(update.changes("a")).count == 1024
        assert update.payload_bytes("a") == MAX_CHUNKS * 14
