"""The codec's kernels as machine code, compiled by numba (optional: `motet[native]`) and cached on disk.

Each loop is compiled for one signature when the first kernels are made, and runs without the interpreter's lock, so
that two workers encode or decode side by side. What comes from a file is checked before anything is allocated or
written.

    positions = NativeKernels().expand_gaps(gaps, values, count)
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from motet.protocols.codec.kernels import (
    ESCAPE,
    MAGNITUDE_MASK,
    MAGNITUDES,
    QUIET_NAN,
    Scan,
    check_bitmap,
    check_changes,
    check_gaps,
)

if sys.byteorder != "little":  # bitmaps are read as words
    raise ImportError("the native kernels need a little-endian processor")

Scalar = TypeVar("Scalar", bound=np.generic)

LANES = 4
"""Histograms kept side by side, so that equal neighbours do not wait for each other."""
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
"""Every six bits of it, from any bit on, are a number of their own: they index `LOWEST_BIT`."""
LOWEST_BIT = np.empty(64, np.uint8)
for _bit in range(64):
    LOWEST_BIT[((1 << _bit) * int(DE_BRUIJN) & (2**64 - 1)) >> 58] = _bit


def _readable(scalar: types.Type, dimensions: int = 1) -> types.Type:
    """The type of an argument that is only read: arrays that may be written fit as well."""
    return types.Array(scalar, dimensions, "C", readonly=True)


INTEGER = types.int64
BITS = _readable(types.uint16)
BYTES = _readable(types.uint8)
WORDS = _readable(types.uint64)


class NativeKernels:
    """`Kernels` compiled by numba: all when the first are made, so that no worker waits for another's compiler."""

    path: Literal["native"] = "native"

    def __init__(self) -> None:
        _compile_all()

    def histogram(self, bits: NDArray[np.uint16]) -> NDArray[np.int64]:
        """Counts (32768,) of the magnitude bits."""
        counts: NDArray[np.int64] = _compiled(_histogram, BITS)(_plain(bits))
        return counts

    def count_rows(self, bits: NDArray[np.uint16], threshold: int) -> NDArray[np.int64]:
        """Values per row (R,) whose magnitude bits reach the threshold."""
        loop = _compiled(_count_rows, _readable(types.uint16, 2), INTEGER)
        counts: NDArray[np.int64] = loop(_plain(bits), threshold)
        return counts

    def scan(self, bits: NDArray[np.uint16], threshold: int) -> Scan:
        """The kept values, and both ways to write where they are."""
        bits = _plain(bits)
        words = _compiled(_reaching, BITS, INTEGER)(bits, threshold)
        gaps, kept = _compiled(_collect, BITS, WORDS, INTEGER)(bits, words, _compiled(_bits_set, WORDS)(words))
        return Scan(gaps=gaps, bitmap=words.view(np.uint8)[: -(-bits.size // 8)], kept=kept)

    def expand_gaps(self, gaps: NDArray[np.uint8], values: int, count: int) -> NDArray[np.int32]:
        """The positions (count,) that the gap bytes stand for."""
        gaps = _plain(gaps)
        found, total = _compiled(_sum_gaps, BYTES)(gaps)
        check_gaps(gaps, found=found, total=total, values=values, count=count)
        positions: NDArray[np.int32] = _compiled(_expand_gaps, BYTES, INTEGER)(gaps, count)
        return positions

    def expand_bitmap(self, bitmap: NDArray[np.uint8], values: int, count: int) -> NDArray[np.int32]:
        """The positions (count,) of the bits that are set."""
        words = _words(bitmap)
        check_bitmap(bitmap, found=_compiled(_bits_set, WORDS)(words), values=values, count=count)
        positions: NDArray[np.int32] = _compiled(_expand_bitmap, WORDS, INTEGER)(words, count)
        return positions

    def add_at(self, bits: NDArray[np.uint16], positions: NDArray[np.int32], changes: NDArray[np.float32]) -> None:
        """Add the changes in place, rounded to nearest even; zero changes leave the bits."""
        check_changes(positions, changes, values=bits.size)
        loop = _compiled(_add_at, types.uint16[::1], _readable(types.int32), _readable(types.float32))
        loop(bits, _plain(positions), _plain(changes))


def _plain(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """The array as the loops take it, contiguous and aligned; copied only if it is not (a view into a file's bytes)."""
    return np.require(array, requirements=["C_CONTIGUOUS", "ALIGNED"])


def _words(bitmap: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A copy of the bitmap, filled up with zeros to whole words."""
    words = np.zeros(-(-bitmap.size // 8), np.uint64)
    words.view(np.uint8)[: bitmap.size] = bitmap
    return words


@functools.cache
def _compile_all() -> None:
    """Use every loop once, on next to nothing."""
    kernels = NativeKernels.__new__(NativeKernels)
    bits = np.zeros(8, np.uint16)
    kernels.histogram(bits)
    kernels.count_rows(bits.reshape(1, 8), 1)
    scan = kernels.scan(bits, 0)
    kernels.add_at(bits, kernels.expand_gaps(scan.gaps, 8, 8), np.zeros(8, np.float32))
    kernels.expand_bitmap(scan.bitmap, 8, 8)


@functools.cache
def _compiled(loop: Callable[..., Any], *signature: types.Type) -> Callable[..., Any]:
    """The loop as machine code, from numba's cache if it is there; compiled anew where no folder can be written."""
    try:
        compiled: Callable[..., Any] = numba.njit(signature, nogil=True, cache=True)(loop)
    except RuntimeError:
        compiled = numba.njit(signature, nogil=True)(loop)
    return compiled


# From here on numba's subset of Python: integers are int64 unless cast, and no index is checked but by what is written.


def _histogram(bits: NDArray[np.uint16]) -> NDArray[np.int64]:
    lanes = np.zeros((LANES, MAGNITUDES), np.uint32)
    whole = bits.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane, bits[start + lane] & MAGNITUDE_MASK] += np.uint32(1)
    for index in range(whole, bits.size):
        lanes[0, bits[index] & MAGNITUDE_MASK] += np.uint32(1)
    counts = np.zeros(MAGNITUDES, np.int64)
    for lane in range(LANES):
        counts += lanes[lane]
    return counts


def _count_rows(bits: NDArray[np.uint16], threshold: int) -> NDArray[np.int64]:
    counts = np.empty(bits.shape[0], np.int64)
    for row in range(bits.shape[0]):
        count = 0
        for column in range(bits.shape[1]):
            count += (bits[row, column] & MAGNITUDE_MASK) >= threshold
        counts[row] = count
    return counts


def _reaching(bits: NDArray[np.uint16], threshold: int) -> NDArray[np.uint64]:
    """The bitmap of the values whose magnitude bits reach the threshold, filled up with zeros to whole words."""
    words = np.zeros((bits.size + 63) // 64, np.uint64)
    bitmap = words.view(np.uint8)
    whole = bits.size // 8
    for index in range(whole):
        byte = 0
        for bit in range(8):  # no branches: it becomes one vector comparison
            byte |= ((bits[8 * index + bit] & MAGNITUDE_MASK) >= threshold) << bit
        bitmap[index] = byte
    for index in range(8 * whole, bits.size):
        bitmap[whole] |= np.uint8(((bits[index] & MAGNITUDE_MASK) >= threshold) << (index - 8 * whole))
    return words


def _bits_set(words: NDArray[np.uint64]) -> np.int64:
    count = np.int64(0)
    for index in range(words.size):
        word = words[index]
        word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
        word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
        word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        count += np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))
    return count


def _collect(bits: NDArray[np.uint16], words: NDArray[np.uint64], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The gap bytes and the bits of the `count` values that `words`, made of the same values, name."""
    gaps = np.empty(count + bits.size // ESCAPE, np.uint8)
    kept = np.empty(count, np.uint16)
    done, written, following = 0, 0, np.int64(0)
    for index in range(words.size):
        word = words[index]
        while word != np.uint64(0):
            lowest = word & (~word + np.uint64(1))
            word ^= lowest
            position = 64 * index + np.int64(LOWEST_BIT[(lowest * DE_BRUIJN) >> np.uint64(58)])
            gap = position - following
            following = position + 1
            while gap >= ESCAPE:
                gaps[written] = ESCAPE
                written += 1
                gap -= ESCAPE
            gaps[written] = gap
            written += 1
            kept[done] = bits[position]
            done += 1
    return gaps[:written], kept


def _sum_gaps(gaps: NDArray[np.uint8]) -> tuple[int, int]:
    """How many gap bytes end with a kept value, and how many dropped values all of them stand for."""
    found, total = 0, 0
    for index in range(gaps.size):
        found += gaps[index] != ESCAPE
        total += gaps[index]
    return found, total


def _expand_gaps(gaps: NDArray[np.uint8], count: int) -> NDArray[np.int32]:
    """Positions of gap bytes that were checked: `count` of them are not 255, the last one among them."""
    positions = np.empty(count, np.int32)
    done, position = np.int64(0), np.int64(0)
    for index in range(gaps.size):
        if done == count:
            break
        position += gaps[index]
        positions[done] = position  # written again after a byte of 255
        ends = np.int64(gaps[index] != ESCAPE)
        done += ends
        position += ends
    return positions


def _expand_bitmap(words: NDArray[np.uint64], count: int) -> NDArray[np.int32]:
    """Positions of the bits set in words that were checked: `count` are."""
    positions = np.empty(count, np.int32)
    done = 0
    for index in range(words.size):
        word = words[index]
        while word != np.uint64(0) and done < count:
            lowest = word & (~word + np.uint64(1))
            word ^= lowest
            positions[done] = 64 * index + np.int64(LOWEST_BIT[(lowest * DE_BRUIJN) >> np.uint64(58)])
            done += 1
    return positions


def _add_at(bits: NDArray[np.uint16], positions: NDArray[np.int32], changes: NDArray[np.float32]) -> None:
    """Positions were checked, and one more time here: an index is the one thing that must not be wrong."""
    for index in range(positions.size):
        position, change = np.int64(positions[index]), changes[index]
        if position < 0 or position >= bits.size or change == np.float32(0):
            continue
        wide = np.uint32(bits[position]) << np.uint32(16)
        wide = np.float32(np.uint32(wide).view(np.float32) + change).view(np.uint32)
        if wide & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
            bits[position] = QUIET_NAN
        else:
            bits[position] = (wide + np.uint32(0x7FFF) + ((wide >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
