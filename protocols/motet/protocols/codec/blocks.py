"""Int8 and int4 blocks: runs of values that share a scale, for low-rank factors, where every value counts.

A chunk's values are cut into blocks of `block`, the last one shorter. A block's scale is its largest magnitude over
127 (int8) or 7 (int4), rounded up to bf16, and a value is the nearest multiple of it.

    payload    scales: one bf16 for each block;  int8: one byte a value;  int4: two values a byte, the first in the low
               half; both in two's complement, -128 and -8 unused, and a half byte left over is zero
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec.changes import SLAB, DenseChange, Floats, Words, widen
from motet.protocols.codec.cursor import Cursor
from motet.protocols.codec.header import MAX_SCALE, Span, TensorHeader
from motet.protocols.errors import CodecError

_LIMIT = {"int8": 127, "int4": 7}
_MOST = int(np.float32(MAX_SCALE).view(np.uint32) >> 16)
"""The bits of the largest bf16 that is a scale."""


def encode(words: Words, tensor: TensorHeader) -> bytes:
    """A chunk's payload. `words` are flat and finite; bf16 comes as its bits.

    Raises:
        CodecError: a value is larger than any scale reaches.
    """
    block, limit = _block(tensor), _LIMIT[tensor.method]
    scales, codes = [], []
    step = SLAB // block * block
    for start in range(0, len(words), step):
        part = widen(words[start : start + step], tensor.dtype)
        padded = np.pad(part, (0, -len(part) % block)).reshape(-1, block)
        bits = _bf16_above(np.abs(padded).max(axis=1) / np.float32(limit))
        if (bits > _MOST).any():
            raise CodecError(
                f"{tensor.name}: saw a value of {np.abs(part).max():g}, wanted at most {limit * MAX_SCALE:g}; look for "
                "a diverged loss, train again"
            )
        scale = widen(bits, "BF16")[:, None]
        quotients = np.divide(padded, scale, out=np.zeros_like(padded), where=scale > 0)
        scales.append(bits)
        codes.append(np.rint(quotients).astype(np.int8).reshape(-1)[: len(part)])
    return b"".join([*(part.tobytes() for part in scales), _packed(np.concatenate(codes), tensor.method)])


def decode(payload: bytes, span: Span, tensor: TensorHeader, *, where: str) -> DenseChange:
    """The change that a payload describes.

    Raises:
        CodecError: the payload has another size, a scale is not finite, negative or too large, or a code is unused.
    """
    cursor, block = Cursor(payload, where=where), _block(tensor)
    bits = np.frombuffer(cursor.take(2 * -(-span.count // block), "scales"), "<u2")
    if (bits > _MOST).any():  # as bits: negative ones, the negative zero, infinity and NaN are above it
        raise cursor.problem(f"saw a block's scale outside 0 to {MAX_SCALE:g}")
    scales = widen(bits, "BF16")
    size = span.count if tensor.method == "int8" else -(-span.count // 2)
    codes = np.frombuffer(cursor.take(size, "codes"), np.uint8)
    cursor.end()
    _check_codes(cursor, codes, span.count, tensor.method)
    slab = _Slab(codes=codes, scales=scales, block=block, method=tensor.method)
    return DenseChange(start=span.start, count=span.count, where=where, slab=slab)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Slab:
    codes: NDArray[np.uint8]
    scales: Floats
    block: int
    method: str

    def __call__(self, start: int, stop: int) -> Floats:
        if self.method == "int8":
            codes = self.codes[start:stop].view(np.int8)
        else:
            codes = _halves(self.codes[start // 2 : -(-stop // 2)])[start % 2 : start % 2 + stop - start]
        blocks = np.arange(start, stop) // self.block
        changes: Floats = codes.astype(np.float32) * self.scales[blocks]
        return changes


def _block(tensor: TensorHeader) -> int:
    assert tensor.block is not None  # noqa: S101 - the header's rule for both methods
    return tensor.block


def _bf16_above(values: Floats) -> NDArray[np.uint16]:
    """The smallest bf16 that is not below each value, which is not negative: a code never exceeds its limit then."""
    return ((values.view(np.uint32) + 0xFFFF) >> 16).astype("<u2")


def _packed(codes: NDArray[np.int8], method: str) -> bytes:
    if method == "int8":
        return codes.tobytes()
    halves = np.pad(codes, (0, len(codes) % 2)).view(np.uint8) & 0x0F
    return (halves[::2] | (halves[1::2] << 4)).tobytes()


def _halves(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The signed half bytes, the low one of each byte first."""
    halves = np.stack([packed << 4, packed & 0xF0], axis=1).reshape(-1)
    return halves.view(np.int8) >> 4


def _check_codes(cursor: Cursor, codes: NDArray[np.uint8], count: int, method: str) -> None:
    if method == "int8":
        unused = bool((codes == 0x80).any())
    else:
        parts = (codes[start : start + SLAB] for start in range(0, len(codes), SLAB))
        unused = any(((part & 0x0F) == 0x08).any() or ((part & 0xF0) == 0x80).any() for part in parts)
        if count % 2 and codes[-1] >> 4:
            raise cursor.problem("saw padding bits set after the last code, wanted zeros")
    if unused:
        raise cursor.problem("saw the most negative code, which stands for nothing")
