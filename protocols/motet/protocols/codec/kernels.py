"""The inner loops of the codec, behind one interface with two implementations that agree bit for bit.

A BF16 value is its `uint16` bits; its *magnitude bits* are `bits & 0x7FFF`, and comparing them compares magnitudes.
Which values of a chunk are kept is written in one of two ways, whichever turns out smaller:

- *gaps*: for each kept value the number z of dropped values since the previous kept one (or the start), as z // 255
  bytes of 255 and one byte z % 255. Nothing stands for the dropped values after the last kept one.
- *bitmap*: one bit a value, lowest bit first, ceil(n / 8) bytes, the padding bits zero.

What comes out of a file is checked before anything is written: `CodecError`, never a write out of bounds.

    kernels = best()
    found = kernels.scan(bits, threshold)
    positions = kernels.expand_gaps(found.gaps, bits.size, found.kept.size)
    kernels.add_at(stored, positions, changes)
"""

import os
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from motet.protocols.errors import CodecError, ConfigurationError

PATH_VARIABLE = "MOTET_CODEC_PATH"
MAGNITUDE_MASK = 0x7FFF
MAGNITUDES = MAGNITUDE_MASK + 1
ESCAPE = 255
"""The gap byte that stands for 255 dropped values and is followed by another one."""
QUIET_NAN = 0x7FC0
"""The only NaN that `add_at` writes, so that every processor writes the same."""
NATIVE_FROM = 1 << 25
"""Values from which on machine code is worth loading: numpy takes a tenth of a second for fewer, numba half of one."""
MOST_VALUES = 2**31 - 1
"""Positions are int32."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scan:
    """The values of a chunk that are kept: what they are, and where, written in both ways.

    Attributes:
        gaps: gap bytes.
        bitmap: ceil(n / 8) bytes.
        kept: the bits of the kept values, in order.
    """

    gaps: NDArray[np.uint8]
    bitmap: NDArray[np.uint8]
    kept: NDArray[np.uint16]


class Kernels(Protocol):
    """The codec's inner loops. Stateless: two threads may call one instance at once."""

    @property
    def path(self) -> Literal["numpy", "native"]:
        """Which implementation this is, as reports name it."""
        ...

    def histogram(self, bits: NDArray[np.uint16]) -> NDArray[np.int64]:
        """Counts (32768,) of the magnitude bits of `bits` (n,)."""
        ...

    def count_rows(self, bits: NDArray[np.uint16], threshold: int) -> NDArray[np.int64]:
        """For each row of `bits` (R, C), how many magnitude bits reach `threshold`: (R,)."""
        ...

    def scan(self, bits: NDArray[np.uint16], threshold: int) -> Scan:
        """Keep the values of `bits` (n,) whose magnitude bits reach `threshold`: 0 keeps all, 32768 none."""
        ...

    def expand_gaps(self, gaps: NDArray[np.uint8], values: int, count: int) -> NDArray[np.int32]:
        """The positions (count,), increasing, that gap bytes of a chunk of `values` values stand for.

        Raises:
            CodecError: not exactly `count` positions, one beyond the chunk, or bytes after the last one.
        """
        ...

    def expand_bitmap(self, bitmap: NDArray[np.uint8], values: int, count: int) -> NDArray[np.int32]:
        """The positions (count,), increasing, of the bits set in the bitmap of a chunk of `values` values.

        Raises:
            CodecError: a wrong number of bytes, not exactly `count` bits set, or padding bits that are set.
        """
        ...

    def add_at(self, bits: NDArray[np.uint16], positions: NDArray[np.int32], changes: NDArray[np.float32]) -> None:
        """Add `changes` (m,) in place to the BF16 values of `bits` (n,) at `positions` (m,), distinct, in any order.

        The sum is float32, rounded to the nearest BF16, ties to even. Where a change is zero the stored bits stay, a
        negative zero and a NaN too. A sum that is not a number becomes 0x7FC0, one too large becomes infinite: callers
        check for both.

        Raises:
            CodecError: a position outside of `bits`, or not one change for each; nothing is written then.
        """
        ...


def best(values: int = MOST_VALUES) -> Kernels:
    """The fastest kernels for so many values: native if there are many and numba can be imported, else numpy.

    Below `NATIVE_FROM` values, numpy is done before numba is even imported. The environment variable
    MOTET_CODEC_PATH chooses at any size: `numpy`, or `native` to fail rather than fall back.

    Raises:
        ConfigurationError: MOTET_CODEC_PATH is something else, or `native` without numba.
    """
    wanted = os.environ.get(PATH_VARIABLE, "")
    if wanted not in ("", "numpy", "native"):
        raise ConfigurationError(f"{PATH_VARIABLE} is {wanted!r}: set it to numpy or native, or leave it out")
    from motet.protocols.codec.numpy_kernels import NumpyKernels

    if wanted == "numpy" or (not wanted and values < NATIVE_FROM):
        return NumpyKernels()
    try:
        from motet.protocols.codec.native_kernels import NativeKernels
    except ImportError as error:  # numba is optional, and refuses a numpy that it does not know
        if wanted == "native":
            raise ConfigurationError(f"{PATH_VARIABLE} is native, but numba cannot be imported: {error}") from error
        return NumpyKernels()
    return NativeKernels()


# What both implementations check alike, from the few numbers that each of them gathers in its own way.


def check_gaps(gaps: NDArray[np.uint8], *, found: int, total: int, values: int, count: int) -> None:
    """Refuse gap bytes, `found` not 255 and `total` their sum, unless they are `count` positions below `values`."""
    _check_size(values)
    if found != count:
        raise CodecError(f"saw gaps for {found} kept values, wanted {count}")
    if gaps.size and gaps[-1] == ESCAPE:
        raise CodecError("saw gaps that end with a byte of 255, wanted the rest of that gap")
    if count and total + count > values:
        raise CodecError(f"saw gaps that lead to value {total + count - 1}, wanted it below {values}")


def check_bitmap(bitmap: NDArray[np.uint8], *, found: int, values: int, count: int) -> None:
    """Refuse a bitmap, `found` of its bits set, unless `count` are, of one bit a value, and its padding is zero."""
    _check_size(values)
    if bitmap.size != -(-values // 8):
        raise CodecError(f"saw a bitmap of {bitmap.size} bytes, wanted {-(-values // 8)} for {values} values")
    if values % 8 and bitmap[-1] >> (values % 8):
        raise CodecError(f"saw padding bits set in a bitmap's last byte, 0x{bitmap[-1]:02x}, wanted zeros")
    if found != count:
        raise CodecError(f"saw a bitmap of {found} kept values, wanted {count}")


def check_changes(positions: NDArray[np.int32], changes: NDArray[np.float32], *, values: int) -> None:
    """Refuse changes unless each has a position and each position is one of `values`; `add_at` begins with it."""
    if positions.size != changes.size:
        raise CodecError(f"saw {changes.size} changes for {positions.size} positions, wanted one each")
    if not positions.size:
        return
    lowest, highest = int(positions.min()), int(positions.max())
    if lowest < 0 or highest >= values:
        raise CodecError(f"saw changes at positions {lowest} to {highest}, wanted them in 0 to {values - 1}")


def _check_size(values: int) -> None:
    if values > MOST_VALUES:
        raise CodecError(f"saw a chunk of {values} values, wanted at most {MOST_VALUES}")
