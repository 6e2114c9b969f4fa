"""The outside of hostile files: cut, joined, shuffled, with headers that say anything at all."""

import json
import random
import struct
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from motet.protocols.codec import UpdateReader
from motet.protocols.codec.header import MAX_CHUNKS
from motet.protocols.errors import CodecError

from .surgery import Frame, Parts, canonical, deflate, file_of, signed, take_apart
from .trial import SEEDS, VECTORS, Trial, refusal

SMALL = ["ternary-all", "levels-bitmap", "lossless-base", "raw"]
MANY = ["ternary-gaps", "levels-gaps", "int4-odd", "lossless"]
small = pytest.mark.parametrize("name", SMALL)
many = pytest.mark.parametrize("name", MANY)


@pytest.fixture
def trial(name: str, tmp_path: Path) -> Trial:
    return Trial(tmp_path, take_apart(VECTORS[name]))


def boundaries(parts: Parts) -> list[int]:
    """Where magic, header and each frame begin and end."""
    data, found = parts.build(), [0, 8, 20]
    at = len(data) - 32 - sum(len(frame.bytes()) for frame in parts.frames)
    for frame in parts.frames:
        found += [at, at + 8]
        at += len(frame.bytes())
    return [*found, at]


@small
def test_every_cut(name: str, trial: Trial) -> None:
    data = VECTORS[name]
    for size in range(len(data)):
        trial.refuse(data[:size])
    for size in range(len(data) - 32):
        trial.refuse(signed(data[:size]))


@many
def test_cuts_at_every_boundary(name: str, trial: Trial) -> None:
    data = trial.parts.build()
    for size in boundaries(trial.parts):
        for body in (data[:size], data[: size + 1], data[: max(0, size - 1)]):
            trial(body)
            if body != data[:-32]:
                trial(signed(body))
    assert trial.taken == 0


@small
def test_every_byte_changed_is_noticed(name: str, trial: Trial) -> None:
    data, rng = VECTORS[name], random.Random(name)
    for at in range(len(data)):
        flip = 1 << rng.randrange(8)
        trial.refuse(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])


@many
def test_pieces_left_out_doubled_and_swapped(name: str, trial: Trial) -> None:
    body, at = trial.parts.build()[:-32], boundaries(trial.parts)
    pieces = [body[start:stop] for start, stop in pairwise(at)]
    for index, piece in enumerate(pieces):
        trial(signed(b"".join([*pieces[:index], *pieces[index + 1 :]])))
        trial(signed(b"".join([*pieces[:index], piece, *pieces[index:]])))
        trial(signed(b"".join([*pieces[:index], b"\0", *pieces[index:]])))
    assert trial.taken == 0


@many
def test_frames_elsewhere(name: str, trial: Trial) -> None:
    parts = trial.parts
    for index, frame in enumerate(parts.frames[:-1]):
        swapped = [*parts.frames[:index], parts.frames[index + 1], frame, *parts.frames[index + 2 :]]
        trial(replace(parts, frames=tuple(swapped)).build())
    for tensor, number in ((0, 0), (1, 0), (0, 1), (2**32 - 1, 2**32 - 1)):
        for index, frame in enumerate(parts.frames):
            if (tensor, number) != (frame.tensor, frame.number):
                other = Frame(tensor=tensor, number=number, payload=frame.payload)
                trial(replace(parts, frames=(*parts.frames[:index], other, *parts.frames[index + 1 :])).build())
    assert trial.taken == 0


@many
def test_lengths_and_checksums_of_frames(name: str, trial: Trial) -> None:
    for index, frame in enumerate(trial.parts.frames):
        whole = [each.bytes() for each in trial.parts.frames]
        size = len(frame.payload)
        for other in (0, 1, size - 1, size + 1, size + 8, 2**31, 2**32 - 1):
            whole[index] = struct.pack("<II", other, frame.checksum()) + frame.payload
            trial(file_of(trial.parts.text, whole))
        for other in (0, frame.checksum() ^ 1, zlib.crc32(frame.payload)):
            whole[index] = struct.pack("<II", size, other) + frame.payload
            trial(file_of(trial.parts.text, whole))
    assert trial.taken == 0


@many
def test_tensors_reordered_with_their_frames_are_the_same_update(name: str, trial: Trial) -> None:
    header = trial.parts.header
    header["tensors"].reverse()
    last = len(header["tensors"]) - 1
    frames = sorted(
        (replace(frame, tensor=last - frame.tensor) for frame in trial.parts.frames),
        key=lambda frame: (frame.tensor, frame.number),
    )
    trial(Parts(text=canonical(header), frames=tuple(frames)).build())
    assert trial.taken == 1
    trial(replace(trial.parts, text=canonical(header)).build())  # the frames stay where they were
    assert trial.taken == 1


def texts(header: dict[str, Any]) -> list[bytes]:
    """Headers that say the same, or nearly, in other words than the canonical ones."""
    text = canonical(header)
    first = header["tensors"][0]
    scale = str(first.get("scale", "")).encode()
    return [
        b"",
        b"null",
        b"[]",
        b"0",
        b'"motet.update/1"',
        b"{}",
        b"\xef\xbb\xbf" + text,
        text + b"\n",
        b" " + text,
        text.replace(b":", b": "),
        text.replace(b"sha256", b"\\u0073ha256"),
        text.replace(b'"name"', b'"\\u006eame"'),
        text.replace(b"model.", b"model\\u002e"),
        text.replace(b"model.", b"mod\xc3\xa9l."),
        text.replace(b"model.", b"mod\xe9l."),
        text.replace(b"model.", b"\xed\xa0\x80."),
        text.replace(b"model.", b"\\ud800."),
        text.replace(b"model.", b"../"),
        text.replace(b"model.", b"/model."),
        text.replace(b"model.", b"model.\\u0000"),
        text.replace(b"model.", b"model.\\u001b[31m"),
        text.replace(b'"schema"', b'"schema":"motet.update/1","schema"'),
        text.replace(b'"anchor"', b'"anchor":"x","anchor"'),
        text.replace(b"update/1", b"update/2"),
        text.replace(b'"chunk_values":', b'"chunk_values":0'),
        text.replace(b'"chunk_values":', b'"chunk_values":-'),
        text.replace(b"1024,", b"1024.0,"),
        text.replace(b"1024,", b'"1024",'),
        text.replace(b"1024,", b"1.024e3,"),
        text.replace(b"1024,", b"true,"),
        text.replace(b'"shape":[', b'"shape":[1.0,'),
        text.replace(b'"shape":[', b'"shape":[2,'),
        text.replace(b'"shape":[', b'"shape":["1",'),
        text.replace(b'"shape":[', b'"shape":[true,'),
        text.replace(b'"shape":[', b'"shape":[null,'),
        text.replace(b'"shape":[', b'"shape":[-1,-1,'),
        text.replace(scale, scale + b"0") if scale else b"",
        text.replace(scale, b"1e-5") if scale else b"",
        text.replace(scale, b"0.00001") if scale else b"",
        text.replace(scale, b"1") if scale else b"",
        text.replace(b'"scale":', b'"scale":-'),
        text.replace(b'"scale":', b'"scale":+'),
        text[:-1] + b',"zz":0}',
        text[:-1] + b',"base":null}',
        text.replace(b'"anchor"', b'"base":null,"anchor"'),
        text.replace(b'"dtype"', b'"block":null,"dtype"', 1),
        text[:-1],
        text + b"}",
        text.replace(b'"tensors":[', b'"tensors":[null,'),
    ]


@pytest.mark.parametrize("name", ["ternary-all", "levels-bitmap", "lossless-base"])
def test_only_the_canonical_header_is_a_header(name: str, trial: Trial) -> None:
    found = [text for text in texts(trial.header) if text != trial.parts.text]
    for text in found:
        trial(replace(trial.parts, text=text).build())
    assert trial.taken == 0
    assert len(found) > 35


CHANGES: list[dict[str, Any]] = [
    *({"scale": value} for value in (0, 0.0, -0.0, -1.0, 1, 1.0, 1e4, 1.0001e4, 1e300, 1e-45, 1e-46, 5e-324, 0.1)),
    *({"scale": value} for value in (1.401298464324817e-45, 1.1754943508222875e-38, 9999.9990234375, "1", True, [])),
    {"scale": None},
    *({"row_scales": value} for value in (True, False, 1, "true", {})),
    *({"block": value} for value in (7, 8, 64, 4096, 4097, 0, -1, 8.0, "8", True)),
    {"block": None},
    *({"method": value} for value in ("ternary", "levels", "int8", "int4", "lossless", "raw", "zip", "", None, 0, [])),
    *({"dtype": value} for value in ("BF16", "F16", "F32", "F64", "bf16", "U8", None, 0)),
    *(
        {"name": value}
        for value in ("a", "A.b_c-1", ".a", "a.", "a..b", "a/b", "-a", "a\n", "", "a" * 512, "a" * 513, 0)
    ),
    *(
        {"shape": value}
        for value in ([], [0], [1], [63], [7, 9], [9, 7], [3, 3, 7], [1] * 6 + [9, 7], [1] * 7 + [9, 7])
    ),
    *(
        {"shape": value}
        for value in ([63, 1], [1, 63], [64], [0, 7], [7, 0], [2**40], [2**40, 0], [2**41, 0], [2**40, 2])
    ),
    *({"shape": value} for value in ([2**22], [2**22 + 1], [1, 2**22], [2**20, 2**20], [2**63], [2**64], [10**4000])),
    *({"shape": value} for value in ([-1, -63], [-7, 9], "63", None, [[9, 7]], [9.0, 7], {})),
]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_key_of_a_tensor(seed: str, tmp_path: Path) -> None:
    trial = Trial(tmp_path, SEEDS[seed])
    tensor = trial.header["tensors"][0]
    for change in [*CHANGES, *({key: None} for key in tensor), {"zz": 0}, {"Name": "a"}]:
        if any(tensor.get(key, object()) != value for key, value in change.items()):
            trial(trial.parts.with_tensor(0, **change).build())
    assert trial.refused > 60


@pytest.mark.parametrize("name", ["lossless-base"])
def test_every_key_of_the_header(name: str, trial: Trial) -> None:
    digests = ["sha256:" + "c" * 64, "sha256:" + "C" * 64, "sha256:" + "c" * 63, "sha512:" + "c" * 64, "c" * 64, "", 0]
    for key in ("anchor", "base"):
        for value in (*digests, None, [], "sha256:" + "c" * 64 + "\n"):
            trial(trial.parts.with_header(**{key: value}).build())
    for number in (
        -1,
        0,
        1,
        1023,
        1025,
        2048,
        1 << 22,
        (1 << 22) + 1,
        2**32,
        2**64,
        10**4000,
        1024.0,
        "1024",
        None,
        True,
    ):
        trial(trial.parts.with_header(chunk_values=number).build())
    for tensors in ([], {}, None, "a", [[]], [0], trial.header["tensors"] * 2):
        trial(trial.parts.with_header(tensors=tensors).build())
    for schema in ("motet.update/2", "motet.update/1 ", "", None, 1):
        trial(trial.parts.with_header(schema=schema).build())
    assert trial.taken >= 5


@pytest.mark.parametrize("name", ["lossless-base"])
def test_sizes_and_checksum_of_the_header(name: str, trial: Trial) -> None:
    text, frames = trial.parts.text, b"".join(frame.bytes() for frame in trial.parts.frames)
    packed = deflate(text)

    def put(inflated: int, size: int, checksum: int, stream: bytes) -> None:
        trial(signed(b"MOTETUP1" + struct.pack("<III", inflated, size, checksum) + stream + frames))

    for other in (0, 1, len(text) - 1, len(text) + 1, 1 << 20, (1 << 20) + 1, 2**31, 2**32 - 1):
        put(other, len(packed), zlib.crc32(packed), packed)
    for other in (0, 1, len(packed) - 1, len(packed) + 1, 1 << 20, (1 << 20) + 1, 2**31, 2**32 - 1):
        put(len(text), other, zlib.crc32(packed), packed)
        put(len(text), other, zlib.crc32(packed[:other]), packed)
    for stream in (packed + b"\0", packed[:-1], zlib.compress(text), b"", b"\0" * 5, bytes(100)):
        put(len(text), len(stream), zlib.crc32(stream), stream)
    put(len(text), len(packed), zlib.crc32(packed) ^ 1, packed)
    for magic in (b"MOTETUP2", b"motetup1", b"\0" * 8):
        trial(signed(magic + trial.parts.build()[8:-32]))
    assert trial.taken == 0
    other = deflate(text, strategy=zlib.Z_DEFAULT_STRATEGY)  # another coder's header is as good
    put(len(text), len(other), zlib.crc32(other), other)
    assert trial.taken == 1


def test_more_chunks_than_a_file_may_have(tmp_path: Path) -> None:
    path = tmp_path / "hostile.motetup"
    tensor = {"dtype": "BF16", "method": "ternary", "name": "a", "scale": 1.0}
    header = {"anchor": "sha256:" + "a" * 64, "chunk_values": 1024, "schema": "motet.update/1"}
    empty = b"\0\0\0\0\0\0"  # no flags; a band of no values
    for count in (MAX_CHUNKS + 1, 1 << 30):
        text = json.dumps(
            header | {"tensors": [tensor | {"shape": [count, 1024]}]}, sort_keys=True, separators=(",", ":")
        )
        path.write_bytes(file_of(text.encode(), [Frame(tensor=0, number=0, payload=empty).bytes()]))
        with pytest.raises(
            CodecError, match=rf"hostile\.motetup: header: .*saw {count} chunks, wanted at most {MAX_CHUNKS}"
        ):
            UpdateReader(path)


@pytest.mark.parametrize(("size", "sound"), [(1 << 20, True), ((1 << 20) + 1, False)])
def test_a_header_may_have_a_megabyte(size: int, sound: bool, tmp_path: Path) -> None:
    tensors = [{"dtype": "F32", "method": "raw", "name": f"n{at:0127d}", "shape": [0]} for at in range(5000)]
    header = {"anchor": "sha256:" + "a" * 64, "chunk_values": 1024, "schema": "motet.update/1", "tensors": tensors}
    missing = size - len(canonical(header))
    for tensor in tensors:
        tensor["name"] += "x" * min(300, missing)
        missing -= min(300, missing)
    path = tmp_path / "hostile.motetup"
    path.write_bytes(file_of(canonical(header), []))
    assert len(canonical(header)) == size
    problem = refusal(lambda: UpdateReader(path).close())
    assert (problem is None) == sound
    assert sound or problem.startswith("hostile.motetup: header: saw 1048577 bytes")


@small
def test_a_tensor_twice_with_frames_for_both(name: str, trial: Trial) -> None:
    tensors = trial.header["tensors"]
    again = [replace(frame, tensor=frame.tensor + len(tensors)) for frame in trial.parts.frames]
    trial(replace(trial.parts, frames=(*trial.parts.frames, *again)).with_header(tensors=tensors * 2).build())
    assert trial.refused == 1
