"""docs/format.md: its example is in the vectors, and its limits are the code's."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np

from motet.protocols.codec import CHUNK_VALUES, UpdateReader
from motet.protocols.codec.header import (
    MAX_CHUNK_VALUES,
    MAX_CHUNKS,
    MAX_HEADER_BYTES,
    MAX_SCALE,
    MAX_TENSOR_VALUES,
    MAX_TENSORS,
)
from motet.protocols.codec.sparse import ROW_SCALE_OF_CODE, class_of

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "format.md").read_text()
EXAMPLE = ROOT / "tests" / "vectors" / "ternary-long-gaps.motetup"


def test_the_example_is_what_the_vector_holds() -> None:
    table = PAGE.partition("## Example")[2]
    cells = re.findall(r"^\| (`[0-9a-f` ]+`) \|", table, re.MULTILINE)
    found = bytes.fromhex(" ".join(cells).replace("`", " "))
    assert len(found) == 32
    assert EXAMPLE.read_bytes()[459 : 459 + 32] == found
    with UpdateReader(EXAMPLE) as update:
        row = update.tensor(update.header.tensors[2].name)[0]
        scale = np.float32(update.header.tensors[2].scale)
    assert np.flatnonzero(row).tolist() == [0, 255, 511, 768, 769]
    assert (row[row != 0] / scale).tolist() == [-1, -1, 1, -1, -1]


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    assert (CHUNK_VALUES, MAX_CHUNK_VALUES, MAX_CHUNKS) == (1 << 22, 1 << 22, 1 << 16)
    assert (MAX_HEADER_BYTES, MAX_TENSORS, MAX_TENSOR_VALUES, MAX_SCALE) == (1 << 20, 8192, 1 << 40, 10000)
    for words in (
        "1024 to 2^22",
        "at most 2^16 chunks",
        "at most 8192 objects",
        "product at most 2^40",
        "at most 10000",
    ):
        assert words in PAGE


def test_classes_are_the_bits_of_the_square() -> None:
    counts = np.array([0, 1, 2, 3, 4, 5, 6, 181, 182, 2**21, 2**22 - 1, 2**22])
    assert class_of(counts).tolist() == [(int(count) ** 2).bit_length() for count in counts]
    every = np.arange(1 << 16)
    assert class_of(every).tolist() == [(count * count).bit_length() for count in range(1 << 16)]


def test_row_scales_are_the_nearest_floats_to_their_powers() -> None:
    assert ROW_SCALE_OF_CODE[0] == 0
    for code in range(1, 256):
        found = ROW_SCALE_OF_CODE[code]
        # found is nearest to 2^((c - 128) / 16) if the power lies between the middles to both neighbours
        below, above = (np.nextafter(found, np.float32(side)) for side in (0, np.inf))
        low, high = (float(found) + float(below)) / 2, (float(found) + float(above)) / 2
        power = 2 ** (code - 128) if code >= 128 else 1
        root = 1 if code >= 128 else 2 ** (128 - code)
        assert Fraction(low) ** 16 * root < power < Fraction(high) ** 16 * root
