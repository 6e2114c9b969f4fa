"""Lossless and raw: the values as they are.

raw         the little-endian bytes
lossless    bf16 in two planes: u32 deflated size; the exponents deflated, one byte a value; then a byte a value
            of the sign (high bit) and the seven bits of the mantissa
"""

import struct

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec.changes import SLAB, DenseChange, Floats, widen, words_of
from motet.protocols.codec.cursor import Cursor
from motet.protocols.codec.deflate import deflate, inflate
from motet.protocols.codec.header import Span, TensorHeader, bytes_of


def encode_raw(words: NDArray[np.generic]) -> bytes:
    """A chunk's payload: its bytes."""
    return words.tobytes()


def encode_lossless(bits: NDArray[np.uint16]) -> bytes:
    """A chunk's payload. `bits` are bf16 bits."""
    exponents = deflate(((bits >> 7) & 0xFF).astype(np.uint8).data)
    rest = ((bits >> 8) & 0x80).astype(np.uint8) | (bits & 0x7F).astype(np.uint8)
    return struct.pack("<I", len(exponents)) + exponents + rest.tobytes()


def decode_raw(payload: bytes, span: Span, tensor: TensorHeader, *, where: str) -> DenseChange:
    """The change that a payload describes; raises CodecError for another size, NaN or infinity."""
    cursor = Cursor(payload, where=where)
    words = words_of(cursor.take(bytes_of(tensor.spec, span.count), "values"), tensor.dtype)
    cursor.end()
    return _change(cursor, words, span, tensor)


def decode_lossless(payload: bytes, span: Span, tensor: TensorHeader, *, where: str) -> DenseChange:
    """The change that a payload describes; raises CodecError for another size, NaN or infinity."""
    cursor = Cursor(payload, where=where)
    packed = cursor.u32("deflated bytes of exponents", most=2 * span.count + 64)
    plane = inflate(cursor.take(packed, "exponents"), span.count, where=f"{where}: exponents")
    rest = np.frombuffer(cursor.take(span.count, "mantissas"), np.uint8)
    cursor.end()
    bits = np.frombuffer(plane, np.uint8).astype(np.uint16)
    bits <<= 7
    bits |= rest & 0x7F
    bits |= (rest & np.uint8(0x80)).astype(np.uint16) << 8
    return _change(cursor, bits, span, tensor)


def _change(cursor: Cursor, words: NDArray[np.generic], span: Span, tensor: TensorHeader) -> DenseChange:
    def slab(start: int, stop: int) -> Floats:
        return widen(words[start:stop], tensor.dtype)

    for start in range(0, span.count, SLAB):
        if not np.isfinite(slab(start, min(start + SLAB, span.count))).all():
            raise cursor.problem("saw NaN or infinity, wanted finite values")
    return DenseChange(start=span.start, count=span.count, where=cursor.where, slab=slab)
