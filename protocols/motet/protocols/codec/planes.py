"""Lossless and raw: the values as they are.

raw         the little-endian bytes
lossless    bf16 in two planes: u32 deflated size; the exponents deflated, one byte a value; then a byte a value
            of the sign (high bit) and the seven bits of the mantissa
"""

import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec.changes import SLAB, DenseChange, Floats, widen, words_of
from motet.protocols.codec.cursor import Cursor
from motet.protocols.codec.deflate import deflate, inflate, most_deflated
from motet.protocols.codec.header import Span, TensorHeader, bytes_of
from motet.protocols.errors import NotFiniteError


def encode_raw(words: NDArray[np.generic]) -> bytes:
    """A chunk's payload: its bytes."""
    return words.tobytes()


def encode_lossless(bits: NDArray[np.uint16]) -> bytes:
    """A chunk's payload. `bits` are bf16 bits."""
    plane, rest = np.empty(len(bits), np.uint8), np.empty(len(bits), np.uint8)
    for start in range(0, len(bits), SLAB):
        part = bits[start : start + SLAB]
        plane[start : start + SLAB] = (part >> 7) & 0xFF
        rest[start : start + SLAB] = ((part >> 8) & 0x80) | (part & 0x7F)
    exponents = deflate(plane.data)
    return b"".join([struct.pack("<I", len(exponents)), exponents, rest.data])


def decode_raw(payload: bytes, span: Span, tensor: TensorHeader, *, where: str) -> DenseChange:
    """The change that a payload describes; raises CodecError for another size, NotFiniteError for NaN or infinity."""
    cursor = Cursor(payload, where=where)
    words = words_of(cursor.take(bytes_of(tensor.spec, span.count), "values"), tensor.dtype)
    cursor.end()
    return _change(cursor, lambda start, stop: widen(words[start:stop], tensor.dtype), span)


def decode_lossless(payload: bytes, span: Span, tensor: TensorHeader, *, where: str) -> DenseChange:
    """The change that a payload describes; raises CodecError for another size, NotFiniteError for NaN or infinity."""
    cursor = Cursor(payload, where=where)
    packed = cursor.u32("deflated bytes of exponents", most=most_deflated(span.count))
    plane = inflate(cursor.take(packed, "exponents"), span.count, where=f"{where}: exponents")
    rest = np.frombuffer(cursor.take(span.count, "mantissas"), np.uint8)
    cursor.end()
    exponents = np.frombuffer(plane, np.uint8)

    def slab(start: int, stop: int) -> Floats:
        bits = exponents[start:stop].astype(np.uint16) << 7
        low = rest[start:stop].astype(np.uint16)
        bits |= low & 0x7F
        bits |= (low & 0x80) << 8
        return widen(bits, "BF16")

    return _change(cursor, slab, span)


def _change(cursor: Cursor, slab: Callable[[int, int], Floats], span: Span) -> DenseChange:
    for start in range(0, span.count, SLAB):
        if not np.isfinite(slab(start, min(start + SLAB, span.count))).all():
            raise cursor.problem("saw NaN or infinity, wanted finite values", NotFiniteError)
    return DenseChange(start=span.start, count=span.count, where=cursor.where, slab=slab)
