"""Ternary payloads by hand: what a single changed byte does not reach."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from motet.protocols.codec import UpdateReader

from .surgery import Frame, Parts, canonical, deflate, sized
from .trial import Trial

HALF, ONE, TWO = 112, 128, 144
"""Codes of row scales."""


def parts(payload: bytes, shape: list[int], **tensor: Any) -> Parts:
    tensor = {"dtype": "BF16", "method": "ternary", "name": "a.weight", "scale": 0.5, "shape": shape} | tensor
    header = {"anchor": "sha256:" + "a" * 64, "chunk_values": 1024, "schema": "motet.update/1", "tensors": [tensor]}
    return Parts(text=canonical(header), frames=(Frame(tensor=0, number=0, payload=payload),))


def gaps(content: bytes, signs: bytes, kept: int | None = None) -> bytes:
    """A band of gaps."""
    kept = sum(byte < 255 for byte in content) if kept is None else kept
    return struct.pack("<BII", 0, kept, len(content)) + sized(deflate(content)) + signs


def bitmap(content: bytes, kept: int) -> bytes:
    """A band with a bitmap, all of it positive."""
    return struct.pack("<BI", 1, kept) + sized(deflate(content)) + bytes(-(-kept // 8))


def section(*content: int) -> bytes:
    return sized(deflate(bytes(content)))


EMPTY = b"\0\0\0\0\0"
ONE_A_ROW = gaps(bytes([0, 3, 3, 3]), b"\5")  # the first value of each of four rows of four

SOUND = {
    "nothing kept": (b"\0" + EMPTY, [4, 4], {}),
    "one a row": (b"\0" + ONE_A_ROW, [4, 4], {}),
    "row scales": (b"\1" + section(HALF, ONE, TWO, 255) + ONE_A_ROW, [4, 4], {"row_scales": True}),
    "row scales, nothing kept": (b"\1" + section(0, 0, 0, 0) + EMPTY, [4, 4], {"row_scales": True}),
    "two classes": (b"\2" + section(1, 0, 1, 0) + EMPTY + gaps(b"\0\3", b"\0"), [4, 4], {}),
    "all kept": (b"\0" + gaps(bytes(16), b"\0\xff"), [4, 4], {}),
    "a bitmap": (b"\0" + bitmap(b"\x81\1", 3), [1, 9], {}),
    "a gap of 255": (b"\0" + gaps(b"\xff\0", b"\0"), [1, 256], {}),
    "a gap of 510": (b"\0" + gaps(b"\xff\xff\0", b"\1"), [2, 256], {}),
}

REFUSED = {
    "row scales that the header has not": (b"\1" + section(HALF, ONE, TWO, 255) + ONE_A_ROW, [4, 4], {}),
    "no row scales though the header says so": (b"\0" + ONE_A_ROW, [4, 4], {"row_scales": True}),
    "a scale of a row that keeps nothing": (b"\1" + section(1, 0, 0, 0) + EMPTY, [4, 4], {"row_scales": True}),
    "no scale of a row that keeps a value": (b"\1" + section(1, 1, 1, 0) + ONE_A_ROW, [4, 4], {"row_scales": True}),
    "one class": (b"\2" + section(1, 1, 1, 1) + ONE_A_ROW, [4, 4], {}),
    "one class, nothing kept": (b"\2" + section(0, 0, 0, 0) + EMPTY, [4, 4], {}),
    "wrong classes": (b"\2" + section(2, 0, 2, 0) + EMPTY + gaps(b"\0\3", b"\0"), [4, 4], {}),
    "classes of other rows": (b"\2" + section(1, 0, 1, 0) + EMPTY + gaps(b"\0\0", b"\0"), [4, 4], {}),
    "classes swapped": (b"\2" + section(1, 0, 1, 0) + gaps(b"\0\3", b"\0") + EMPTY, [4, 4], {}),
    "a band too many": (b"\0" + EMPTY + EMPTY, [4, 4], {}),
    "a band too few": (b"\2" + section(1, 0, 1, 0) + EMPTY, [4, 4], {}),
    "no band": (b"\0", [4, 4], {}),
    "an empty payload": (b"", [4, 4], {}),
    "an empty bitmap": (b"\0" + struct.pack("<BI", 1, 0), [4, 4], {}),
    "a padding bit that counts": (b"\0" + bitmap(b"\1\2", 2), [1, 9], {}),
    "a padding bit that does not": (b"\0" + bitmap(b"\1\2", 1), [1, 9], {}),
    "a padding bit of the signs": (b"\0" + gaps(b"\0\0", b"\4"), [1, 9], {}),
    "a gap without its end": (b"\0" + gaps(b"\0\xff", b"\0"), [1, 512], {}),
    "a gap past the end": (b"\0" + gaps(b"\xff\1", b"\0"), [1, 256], {}),
    "fewer kept than gaps": (b"\0" + gaps(b"\0\0", b"\0", kept=1), [4, 4], {}),
    "more kept than gaps": (b"\0" + gaps(b"\0\0", b"\0", kept=3), [4, 4], {}),
    "more kept than values": (b"\0" + gaps(bytes(17), bytes(3)), [4, 4], {}),
}


@pytest.mark.parametrize("name", SOUND)
def test_taken(name: str, tmp_path: Path) -> None:
    payload, shape, tensor = SOUND[name]
    trial = Trial(tmp_path, parts(payload, shape, **tensor))
    trial(trial.parts.build())
    assert trial.taken == 1


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    payload, shape, tensor = REFUSED[name]
    trial = Trial(tmp_path, parts(payload, shape, **tensor))
    trial(trial.parts.build())
    assert trial.refused == 1


def test_values_by_hand(tmp_path: Path) -> None:
    payload, shape, tensor = SOUND["row scales"]
    path = tmp_path / "u.motetup"
    path.write_bytes(parts(payload, shape, **tensor).build())
    with UpdateReader(path) as update:
        found = update.tensor("a.weight")
    last = np.float32(2 ** (127 / 16)) * np.float32(0.5)
    assert found[:, 0].tolist() == [-0.25, 0.5, -1.0, last]
    assert not found[:, 1:].any()
