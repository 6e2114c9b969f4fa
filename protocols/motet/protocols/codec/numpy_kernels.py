"""The codec's kernels in numpy: the reference, always there, and what a coordinator decodes strangers' bytes with.

Every kernel works in slabs of 2^18 values: beyond its inputs and outputs it holds at most about 8 MB at any size.

    positions = NumpyKernels().expand_gaps(gaps, values, count)
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
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

SLAB = 2**18
"""Values per slab; a multiple of 8, so that slabs of a bitmap begin at a byte."""


class NumpyKernels:
    """`Kernels` with numpy alone."""

    path: Literal["numpy"] = "numpy"

    def histogram(self, bits: NDArray[np.uint16]) -> NDArray[np.int64]:
        """Counts (32768,) of the magnitude bits."""
        signed = np.zeros(2 * MAGNITUDES, np.int64)
        for slab in _slabs(bits.size):
            signed += np.bincount(bits[slab], minlength=2 * MAGNITUDES)
        return signed[:MAGNITUDES] + signed[MAGNITUDES:]

    def count_rows(self, bits: NDArray[np.uint16], threshold: int) -> NDArray[np.int64]:
        """Values per row (R,) whose magnitude bits reach the threshold."""
        rows, columns = bits.shape
        counts = np.zeros(rows, np.int64)
        height = max(1, SLAB // max(1, columns))
        for top in range(0, rows, height):
            for slab in _slabs(columns):
                packed = np.packbits(_reaching(bits[top : top + height, slab], threshold), axis=1)
                counts[top : top + height] += np.bitwise_count(packed).sum(axis=1, dtype=np.int64)
        return counts

    def scan(self, bits: NDArray[np.uint16], threshold: int) -> Scan:
        """The kept values, and both ways to write where they are."""
        bitmap = np.empty(-(-bits.size // 8), np.uint8)
        for slab in _slabs(bits.size):
            bitmap[_bytes(slab)] = np.packbits(_reaching(bits[slab], threshold), bitorder="little")
        kept = np.empty(_bits_set(bitmap), np.uint16)
        gaps = np.empty(kept.size + bits.size // ESCAPE, np.uint8)
        done, written, following = 0, 0, 0
        for slab in _slabs(bits.size):
            positions = _positions(bitmap, slab)
            if positions.size:
                np.take(bits[slab], positions, out=kept[done : done + positions.size], mode="clip")
                found = _gap_bytes(positions, following - slab.start)
                gaps[written : written + found.size] = found
                done, written, following = (
                    done + positions.size,
                    written + found.size,
                    slab.start + int(positions[-1]) + 1,
                )
        return Scan(gaps=gaps[:written], bitmap=bitmap, kept=kept)

    def expand_gaps(self, gaps: NDArray[np.uint8], values: int, count: int) -> NDArray[np.int32]:
        """The positions (count,) that the gap bytes stand for."""
        check_gaps(gaps, found=_ends(gaps), total=_total(gaps), values=values, count=count)
        positions = np.empty(count, np.int32)
        done, following = 0, 0
        for slab in _slabs(gaps.size):
            ends = gaps[slab] != ESCAPE
            # A gap and the kept value after it: at most 255 again, as only bytes below 255 end with a kept value.
            reached = np.cumsum(gaps[slab] + ends, dtype=np.int32)
            reached += np.int32(following - 1)
            following = int(reached[-1]) + 1
            found = reached if ends.all() else reached[ends]
            positions[done : done + found.size] = found
            done += found.size
        return positions

    def expand_bitmap(self, bitmap: NDArray[np.uint8], values: int, count: int) -> NDArray[np.int32]:
        """The positions (count,) of the bits that are set."""
        check_bitmap(bitmap, found=_bits_set(bitmap), values=values, count=count)
        positions = np.empty(count, np.int32)
        done = 0
        for slab in _slabs(values):
            found = _positions(bitmap, slab)
            np.add(found, slab.start, out=positions[done : done + found.size], casting="same_kind")
            done += found.size
        return positions

    def add_at(self, bits: NDArray[np.uint16], positions: NDArray[np.int32], changes: NDArray[np.float32]) -> None:
        """Add the changes in place, rounded to nearest even; zero changes leave the bits."""
        check_changes(positions, changes, values=bits.size)
        for slab in _slabs(positions.size):
            at, change = positions[slab], changes[slab]
            stored = bits[at]
            changed = _sum(stored, change)
            np.copyto(changed, stored, where=change == 0)
            bits[at] = changed


def _slabs(values: int) -> Iterator[slice]:
    """Slices that cover `values` values; every one but the last is SLAB long."""
    return (slice(start, min(start + SLAB, values)) for start in range(0, values, SLAB))


def _bytes(slab: slice) -> slice:
    """The bytes of a bitmap that hold the values of a slab."""
    return slice(slab.start // 8, -(-slab.stop // 8))


def _reaching(bits: NDArray[np.uint16], threshold: int) -> NDArray[np.bool_]:
    """Where the magnitude bits reach the threshold."""
    return (bits & np.uint16(MAGNITUDE_MASK)) >= threshold


def _positions(bitmap: NDArray[np.uint8], slab: slice) -> NDArray[np.intp]:
    """Where bits are set in a slab of the bitmap, counted from the slab's start."""
    flags = np.unpackbits(bitmap[_bytes(slab)], count=slab.stop - slab.start, bitorder="little")
    return np.flatnonzero(flags.view(np.bool_))


def _bits_set(bitmap: NDArray[np.uint8]) -> int:
    return sum(int(np.bitwise_count(bitmap[slab]).sum(dtype=np.int64)) for slab in _slabs(bitmap.size))


def _ends(gaps: NDArray[np.uint8]) -> int:
    """How many gap bytes are followed by a kept value."""
    return sum(int(np.count_nonzero(gaps[slab] != ESCAPE)) for slab in _slabs(gaps.size))


def _total(gaps: NDArray[np.uint8]) -> int:
    """How many dropped values the gap bytes stand for."""
    return sum(int(gaps[slab].sum(dtype=np.int64)) for slab in _slabs(gaps.size))


def _gap_bytes(positions: NDArray[np.intp], following: int) -> NDArray[np.uint8]:
    """The gaps before each position; `following` is where the first gap begins, negative if in an earlier slab."""
    gaps = np.diff(positions, prepend=following - 1)
    gaps -= 1
    long = np.flatnonzero(gaps >= ESCAPE)
    if not long.size:
        return gaps.astype(np.uint8)
    escapes, gaps[long] = np.divmod(gaps[long], ESCAPE)
    return np.insert(gaps.astype(np.uint8), np.repeat(long, escapes), np.uint8(ESCAPE))


def _sum(stored: NDArray[np.uint16], change: NDArray[np.float32]) -> NDArray[np.uint16]:
    """BF16 of float32(stored) + change, rounded to nearest, ties to even."""
    wide = stored.astype(np.uint32)
    wide <<= 16
    total = wide.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        total += change
    nans = np.isnan(total)
    odd = wide >> 16
    odd &= 1
    wide += odd
    wide += 0x7FFF
    wide >>= 16
    rounded = wide.astype(np.uint16)
    rounded[nans] = QUIET_NAN
    return rounded
