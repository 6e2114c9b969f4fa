"""Ternary and levels: where the kept values are, their signs, and for levels how large each is.

A chunk's positions are coded in *bands*: rows of like density, which a class map names, or all rows as one band when
they are alike. A band's positions travel as gaps or as a bitmap, whichever a Huffman code makes smaller.

    payload    u8 flags: 1 row scales, 2 class map
               row scales: u32 deflated size; deflated, one byte a row: 0 keeps nothing, c is 2^((c - 128) / 16)
               class map: u32 deflated size; deflated, one byte a row
               bands, by ascending class
    a band     u8 mode (0 gaps, 1 bitmap), u32 kept values; and unless that is 0:
               gaps only: u32 gap bytes;  u32 deflated size; deflated;  signs, one bit each, 1 is negative
               levels only: u32 deflated size; deflated, one byte for each kept value: its level minus 1
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec.changes import SLAB, SparseChange, narrow, widen
from motet.protocols.codec.cursor import Cursor
from motet.protocols.codec.deflate import deflate, huffman_bits, inflate, most_deflated
from motet.protocols.codec.header import Span, TensorHeader
from motet.protocols.codec.kernels import Kernels

ROW_SCALES, CLASS_MAP = 1, 2
GAPS, BITMAP = 0, 1
MAX_LEVEL = 256
ROW_STEPS = 16
"""Row scales for each doubling: 4.4 per cent apart."""
ROW_SHRINKAGE = 0.5
ROW_SCALE_OF_CODE = np.exp2((np.arange(256) - 128) / ROW_STEPS).astype(np.float32)
ROW_SCALE_OF_CODE[0] = 0

_WORTH_IT = 0.99
"""Bands must save one per cent of the positions' entropy: less is noise in the counts."""
_BAND_BITS = 8 * 100
"""What a band costs by itself, about: its fields and a Huffman table."""

Bits = NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cut:
    """Which values of a tensor are kept: those whose magnitude's bits reach `threshold`.

    With `weights`, float32 and one for each row of the tensor, values compete times their row's. `step` is what a level
    is worth, and `dead_zone` the magnitude, in steps, from which on a value is level 1; None keeps signs alone.
    """

    threshold: int
    weights: NDArray[np.float32] | None = None
    step: float | None = None
    dead_zone: float = 0.0

    def levels(self, kept: Bits) -> NDArray[np.uint8]:
        """The level minus 1 of each kept value."""
        assert self.step is not None  # noqa: S101 - asked of the method levels only
        found = np.empty(len(kept), np.uint8)
        for part in _slabs(len(kept)):
            magnitude = widen(kept[part] & np.uint16(0x7FFF), "BF16") / np.float32(self.step)
            levels = np.floor(magnitude + np.float32(1 - self.dead_zone)) - 1
            found[part] = np.clip(levels, 0, MAX_LEVEL - 1)
        return found


def class_of(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A row's class by the number of values it keeps: two classes for each doubling, 0 for none."""
    squares = counts.astype(np.float64) ** 2  # exact: a count has at most 22 bits
    return np.frexp(squares)[1].astype(np.uint8)


def ranked(bits: Bits, span: Span, weights: NDArray[np.float32] | None) -> Bits:
    """What the values of a chunk compete with: their own bf16 bits, or those of value times weight; signs stay."""
    if weights is None:
        return bits
    rows, first = bits.reshape(span.rows, span.columns), span.start // span.columns
    found = np.empty_like(rows)
    step = max(1, SLAB // span.columns)
    for start in range(0, span.rows, step):
        weight = weights[first + start : first + min(start + step, span.rows), None]
        found[start : start + step] = narrow(widen(rows[start : start + step], "BF16") * weight, "BF16")
    return found.reshape(-1)


def encode(bits: Bits, span: Span, cut: Cut, tensor: TensorHeader, kernels: Kernels) -> bytes:
    """A chunk's payload. `bits` are the differences' bf16 bits, (span.count,)."""
    ranks = ranked(bits, span, cut.weights)
    rows = ranks.reshape(span.rows, span.columns)
    counts = kernels.count_rows(rows, cut.threshold)
    classes = class_of(counts) if span.rows > 1 else None
    banded = classes is not None and _bands_pay(counts, classes, span.columns)
    parts = [bytes([(ROW_SCALES if tensor.row_scales else 0) | (CLASS_MAP if banded else 0)])]
    if tensor.row_scales:
        parts += _sized(deflate(_row_codes(bits.reshape(rows.shape), rows, cut.threshold, tensor).data))
    if banded and classes is not None:
        parts += _sized(deflate(classes.tobytes()))
        for label in np.unique(classes):
            parts += _band(rows[classes == label].reshape(-1), cut, kernels)
    else:
        parts += _band(ranks, cut, kernels)
    return b"".join(parts)


def decode(payload: bytes, span: Span, tensor: TensorHeader, kernels: Kernels, *, where: str) -> SparseChange:
    """The change that a payload describes.

    Raises:
        CodecError: the payload is not exactly what `encode` writes for these values.
    """
    assert tensor.scale is not None  # noqa: S101 - the header's rule for both methods
    cursor = Cursor(payload, where=where)
    flags = cursor.u8("flags", most=ROW_SCALES | CLASS_MAP)
    if bool(flags & ROW_SCALES) != bool(tensor.row_scales):
        raise cursor.problem(f"saw flags {flags}, wanted row scales as the header says")
    codes = np.frombuffer(_section(cursor, span.rows, "row scales"), np.uint8) if flags & ROW_SCALES else None
    positions, multiples = [], []
    for label, rows in _read_classes(cursor, span) if flags & CLASS_MAP else [(None, None)]:
        found, signed = _read_band(cursor, span.rows if rows is None else len(rows), span.columns, tensor, kernels)
        if rows is not None:
            _check_class(cursor, found, len(rows), span.columns, label)
            _to_chunk(found, rows, span.columns)
        positions.append(found)
        multiples.append(signed)
    cursor.end()
    at, changes = _joined(positions), _joined(multiples)
    changes *= np.float32(tensor.scale)
    if codes is not None:
        _take_row_scales(cursor, changes, at, codes, span)
    return SparseChange(start=span.start, count=span.count, where=where, positions=at, changes=changes, kernels=kernels)


def _bands_pay(counts: NDArray[np.int64], classes: NDArray[np.uint8], columns: int) -> bool:
    """Whether rows of like density, coded apart, take fewer bits than all of them together, class map included."""
    together = _position_bits(int(counts.sum()), len(counts) * columns)
    apart = 0.0
    for label in np.unique(classes):
        members = counts[classes == label]
        apart += _position_bits(int(members.sum()), len(members) * columns) + _BAND_BITS
        apart += len(members) * math.log2(len(counts) / len(members))
    return apart < _WORTH_IT * together


def _position_bits(kept: int, values: int) -> float:
    """The entropy of which of so many values are kept, in bits."""
    if kept in (0, values):
        return 0.0
    share = kept / values
    return -values * (share * math.log2(share) + (1 - share) * math.log2(1 - share))


def _row_codes(rows: Bits, ranks: Bits, threshold: int, tensor: TensorHeader) -> NDArray[np.uint8]:
    """Each row's scale code: the square root of its mean kept magnitude over the tensor's; 0 where nothing is kept.

    The root draws the mean of a few values towards the tensor's: on trained experts it keeps more of the gain than
    the mean itself does, or no row scale.
    """
    found = np.zeros(len(rows), np.uint8)
    for index, (row, rank) in enumerate(zip(rows, ranks, strict=True)):
        kept = row[(rank & np.uint16(0x7FFF)) >= threshold] & np.uint16(0x7FFF)
        if len(kept):
            mean = widen(kept, "BF16").mean(dtype=np.float64)
            octaves = ROW_SHRINKAGE * np.log2(mean / (tensor.scale or 1.0))
            found[index] = np.rint(128 + ROW_STEPS * octaves).clip(1, 255)
    return found


def _band(bits: Bits, cut: Cut, kernels: Kernels) -> list[bytes]:
    scan = kernels.scan(bits, cut.threshold)
    kept = len(scan.kept)
    if not kept:
        return [struct.pack("<BI", GAPS, 0)]
    if huffman_bits(scan.gaps) <= huffman_bits(scan.bitmap):
        parts = [struct.pack("<BII", GAPS, kept, len(scan.gaps)), *_sized(deflate(scan.gaps.data))]
    else:
        parts = [struct.pack("<BI", BITMAP, kept), *_sized(deflate(scan.bitmap.data))]
    parts.append(np.packbits((scan.kept >> 15).astype(np.uint8), bitorder="little").tobytes())
    if cut.step is not None:
        parts += _sized(deflate(cut.levels(scan.kept).data))
    return parts


def _sized(data: bytes) -> list[bytes]:
    return [struct.pack("<I", len(data)), data]


def _take_row_scales(
    cursor: Cursor,
    changes: NDArray[np.float32],
    positions: NDArray[np.int32],
    codes: NDArray[np.uint8],
    span: Span,
) -> None:
    """Multiply each change by its row's scale, in place; a row has one exactly if it keeps anything."""
    keeps = np.zeros(span.rows, np.bool_)
    for part in _slabs(len(positions)):
        rows = positions[part] // span.columns
        keeps[rows] = True
        changes[part] *= ROW_SCALE_OF_CODE[codes[rows]]
    if (keeps != (codes > 0)).any():
        raise cursor.problem("saw a row scale without a kept value in its row, or the reverse")


def _read_classes(cursor: Cursor, span: Span) -> list[tuple[int, NDArray[np.int32]]]:
    """Each class and its rows, ascending."""
    classes = np.frombuffer(_section(cursor, span.rows, "class map"), np.uint8)
    labels = np.unique(classes)
    if len(labels) < 2:
        raise cursor.problem("saw a class map with one class, wanted none at all then")
    return [(int(label), np.flatnonzero(classes == label).astype(np.int32)) for label in labels]


def _check_class(cursor: Cursor, positions: NDArray[np.int32], rows: int, columns: int, label: int | None) -> None:
    for part in _slabs(rows):
        starts = np.arange(part.start, min(part.stop, rows) + 1, dtype=np.int32) * np.int32(columns)
        if (class_of(np.diff(np.searchsorted(positions, starts))) != label).any():
            raise cursor.problem(f"saw a row in class {label} that keeps another number of values")


def _to_chunk(positions: NDArray[np.int32], rows: NDArray[np.int32], columns: int) -> None:
    """Turn positions within a band, whose rows are `rows` of the chunk, into positions in the chunk, in place."""
    for part in _slabs(len(positions)):
        row, column = np.divmod(positions[part], np.int32(columns))
        positions[part] = rows[row] * np.int32(columns) + column


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """All parts in one array; the list is left empty, so that they do not stay beside it."""
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    parts.clear()
    return joined


def _slabs(count: int) -> Iterator[slice]:
    return (slice(start, start + SLAB) for start in range(0, count, SLAB))


def _read_band(
    cursor: Cursor, rows: int, columns: int, tensor: TensorHeader, kernels: Kernels
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Positions within the band, and the multiple of the scale at each: a sign, or a signed level."""
    values = rows * columns
    mode, kept = cursor.u8("mode", most=BITMAP), cursor.u32("kept values", most=values)
    if not kept:
        if mode != GAPS:
            raise cursor.problem("saw a bitmap of an empty band, wanted mode 0")
        return np.zeros(0, np.int32), np.zeros(0, np.float32)
    size = cursor.u32("gap bytes", most=kept + values // 255) if mode == GAPS else -(-values // 8)
    coded = np.frombuffer(_section(cursor, size, "positions"), np.uint8)
    expand = kernels.expand_gaps if mode == GAPS else kernels.expand_bitmap
    with cursor.naming_place():
        positions = expand(coded, values, kept)
    signs = _signs(cursor, kept)
    if tensor.method == "levels":
        levels = np.frombuffer(_section(cursor, kept, "levels"), np.uint8)
        for part in _slabs(kept):
            signs[part] *= levels[part].astype(np.float32) + np.float32(1)
    return positions, signs


def _section(cursor: Cursor, size: int, what: str) -> bytes:
    """A deflated section that inflates to `size` bytes."""
    packed = cursor.u32(f"deflated bytes of {what}", most=most_deflated(size))
    return inflate(cursor.take(packed, what), size, where=f"{cursor.where}: {what}")


def _signs(cursor: Cursor, kept: int) -> NDArray[np.float32]:
    packed = np.frombuffer(cursor.take(-(-kept // 8), "signs"), np.uint8)
    if kept % 8 and packed[-1] >> (kept % 8):
        raise cursor.problem("saw padding bits set after the signs, wanted zeros")
    signs = np.unpackbits(packed, count=kept, bitorder="little").astype(np.float32)
    signs *= -2
    signs += 1
    return signs
