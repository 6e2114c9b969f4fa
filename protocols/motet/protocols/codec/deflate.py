"""DEFLATE (RFC 1951) as the codec's entropy coder: Huffman codes only, one raw stream per section.

Guarantees on the way in: never more memory than the caller allows, and every byte of the stream accounted for.

    packed = deflate(gaps)
    inflate(packed, len(gaps), where="gaps") == gaps
"""

import heapq
import zlib

import numpy as np
from numpy.typing import NDArray

from motet.protocols.errors import CodecError

Bytes = bytes | memoryview

_RAW = -15
"""A raw stream with a window of 32 KiB: checksums are the frame's business."""
_MEMORY = 9
"""The largest blocks that zlib makes: fewer tables, 0.15 % smaller than the default."""

_SLAB = 1 << 18


def deflate(data: Bytes) -> bytes:
    """Entropy-code bytes without looking for repeats: gaps and bitmaps have none worth finding."""
    coder = zlib.compressobj(9, zlib.DEFLATED, _RAW, _MEMORY, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


def most_deflated(size: int) -> int:
    """The most bytes that a stream of `size` bytes may take here: the fixed code's, which no encoder need exceed."""
    return size + size // 8 + 64


def inflate(data: Bytes, size: int, *, where: str) -> bytes:
    """Exactly `size` bytes out of one whole stream.

    Raises:
        CodecError: it is damaged, holds more or fewer bytes, is cut, or is followed by anything.
    """
    coder = zlib.decompressobj(_RAW)
    try:
        found = coder.decompress(data, size + 1)  # one more, so that the stream's end is read too
    except zlib.error as error:
        raise CodecError(f"{where}: saw a damaged DEFLATE stream ({error}); fetch the file again") from error
    if len(found) != size or not coder.eof or coder.unused_data or coder.unconsumed_tail:
        ended = "its end" if coder.eof else "no end"
        raise CodecError(
            f"{where}: saw {len(found)} bytes and {ended} in a DEFLATE stream, wanted exactly {size} and nothing after"
        )
    return found


def huffman_bits(data: NDArray[np.uint8]) -> int:
    """How many bits a Huffman code takes for these bytes, its table not counted: what `deflate` will about need."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(data), _SLAB):  # numpy counts 64-bit copies
        counts += np.bincount(data[start : start + _SLAB], minlength=256)
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    if len(heap) == 1:
        return heap[0]
    total = 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total
