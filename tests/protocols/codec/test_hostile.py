"""Files by strangers: whatever is changed in one, it is refused with a `CodecError` that says where, or means the same.

Every mutation has its checksums and its footer made right, so that it reaches the code behind them, and is held against
`reference`: what one of the two decoders takes the other must take, with the same values.
"""

import itertools
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from .surgery import Field, deflate, fields, sized, take_apart
from .trial import SEEDS, VECTORS, Trial


def test_the_trial_takes_every_vector_and_its_parts_put_together(tmp_path: Path) -> None:
    for data in VECTORS.values():
        trial = Trial(tmp_path, take_apart(data))
        trial(data)
        trial(trial.parts.build())
        assert trial.taken == 2


def numbers(value: int, size: int) -> Iterator[bytes]:
    """Other values of a little-endian field."""
    edge = 1 << 8 * size
    near = {value - 1, value + 1, value ^ 1, 2 * value}
    for other in sorted({0, 1, 2, 3, 4, 0x7F, 0x80, 0xFF, edge // 2 - 1, edge // 2, edge - 1, *near} - {value}):
        if 0 <= other < edge:
            yield other.to_bytes(size, "little")


def edits(content: bytes, rng: random.Random) -> Iterator[bytes]:
    """Other contents of a field: cut, longer, bytes changed at both ends and in between."""
    yield b""
    yield content[:-1]
    yield content[1:]
    yield content + b"\0"
    yield content + content[-1:]
    yield bytes(len(content))
    yield b"\xff" * len(content)
    spots = {0, len(content) - 1, *rng.sample(range(len(content)), min(3, len(content)))} if content else ()
    for at, byte in itertools.product(spots, (0x00, 0x01, 0x80, 0xFF)):
        yield content[:at] + bytes([byte]) + content[at + 1 :]


def streams(content: bytes) -> Iterator[bytes]:
    """Deflated sections that are not the stream of `content`, or not only."""
    packed = deflate(content)
    yield sized(deflate(content, strategy=zlib.Z_DEFAULT_STRATEGY))  # legal: another coder
    yield sized(b"")
    yield sized(packed[:-1])
    yield sized(packed + b"\0")
    yield sized(packed + packed)
    yield struct.pack("<I", len(packed) - 1) + packed
    yield struct.pack("<I", 0xFFFFFFFF) + packed
    yield sized(deflate(bytes(1 << 20), strategy=zlib.Z_DEFAULT_STRATEGY))
    yield sized(zlib.compress(content))  # a zlib stream, not a raw one
    yield sized(b"\x01\x00\x00\xff\xff" + packed)  # an empty last block, then the stream
    yield sized(b"\x00\x00\x00\xff\xff" + packed)  # legal: an empty block before it
    yield sized(b"\x00\x00\x00\xff\xff" * (len(content) + 100) + packed)  # too many of them
    yield sized(b"\x07" + packed)


def others(field: Field, rng: random.Random) -> Iterator[bytes]:
    if field.content is not None:
        yield from (sized(deflate(content)) for content in edits(field.content, rng))
        yield from streams(field.content)
    elif len(field.data) in (1, 4):
        yield from numbers(int.from_bytes(field.data, "little"), len(field.data))
    yield from edits(field.data, rng)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_field_of_every_payload(seed: str, tmp_path: Path) -> None:
    trial, rng = Trial(tmp_path, SEEDS[seed]), random.Random(seed)
    found = [field.data for field in fields(trial.parts, 0)]
    trial(trial.parts.build())
    assert trial.taken == 1
    for index, field in enumerate(fields(trial.parts, 0)):
        for other in others(field, rng):
            trial(trial.parts.with_payload(0, b"".join([*found[:index], other, *found[index + 1 :]])).build())
    assert trial.refused > 5
