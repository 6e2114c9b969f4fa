"""What a decoded chunk does to the anchor: the one definition of an expert's values.

An expert's value is the float32 sum of the anchor's value and the change, rounded to nearest, ties to even, in the
anchor's dtype; where the change is zero the anchor's bits stay as they are. Element by element, so chunks change
nothing.

    change.add_to(stored, "BF16")     # the expert's bytes
    change.values()                   # the change alone, float32
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec.kernels import Kernels
from motet.protocols.errors import CodecError, NotFiniteError

SLAB = 1 << 18
"""Values widened to float32 at a time."""

_WORDS: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}

Floats = NDArray[np.float32]
Words = NDArray[Any]
"""Stored values: uint16 bits for BF16, else floats."""


def widen(words: Words, dtype: str) -> Floats:
    """Stored values as float32; bf16 comes as its bits (uint16)."""
    if dtype == "BF16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    return words.astype(np.float32)


def narrow(values: Floats, dtype: str) -> Words:
    """Float32 rounded to nearest even in a stored dtype; finite values only (a bf16 NaN could round to infinity)."""
    if dtype != "BF16":
        return values.astype(_WORDS[dtype])
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def words_of(data: bytes | bytearray | memoryview, dtype: str) -> Words:
    """Raw little-endian bytes as an array that does not own them: uint16 bits for BF16, else floats."""
    return np.frombuffer(data, dtype=_WORDS[dtype])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change(ABC):
    """The change of one chunk: `count` values from the tensor's flat index `start` on."""

    start: int
    count: int
    where: str

    @abstractmethod
    def values(self) -> Floats:
        """The change, dense: float32 (count,)."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest magnitude in the change."""

    @abstractmethod
    def _add(self, words: Words, dtype: str) -> None:
        """Add in place."""

    def add_to(self, stored: bytes | bytearray | memoryview, dtype: str) -> Words:
        """The expert's values, in the dtype of `stored`, which holds the anchor's values of this chunk.

        A bytearray is given away: it is changed in place and is the result's memory. Anything else stays as it is.

        Raises:
            NotFiniteError: a value is not finite afterwards.
            CodecError: `stored` has another size.
        """
        words = words_of(stored, dtype)
        words = words if isinstance(stored, bytearray) else words.copy()
        if len(words) != self.count:
            raise CodecError(f"{self.where}: saw {len(words)} values to change, wanted {self.count}; use the anchor")
        self._add(words, dtype)
        if not all_finite(words, dtype):
            raise NotFiniteError(f"{self.where}: saw a value that is not finite in {dtype}; train again, pack again")
        return words


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseChange(Change):
    """Few values change: `positions` int32 (m,), each once, and `changes` float32 (m,)."""

    positions: NDArray[np.int32]
    changes: Floats
    kernels: Kernels

    def values(self) -> Floats:
        """See Change."""
        dense = np.zeros(self.count, np.float32)
        dense[self.positions] = self.changes
        return dense

    @property
    def largest(self) -> float:
        """See Change."""
        return max(float(self.changes.max()), -float(self.changes.min())) if self.changes.size else 0.0

    def _add(self, words: Words, dtype: str) -> None:
        if dtype == "BF16":
            self.kernels.add_at(words.view(np.uint16), self.positions, self.changes)
        else:
            words[self.positions] = _sum(words[self.positions], self.changes, dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseChange(Change):
    """Every value may change: `slab(start, stop)` makes a part of them, float32, so that memory stays small."""

    slab: Callable[[int, int], Floats]

    def values(self) -> Floats:
        """See Change."""
        return self.slab(0, self.count)

    @property
    def largest(self) -> float:
        """See Change."""
        return max((float(np.abs(part).max()) for _, part in self._slabs()), default=0.0)

    def _add(self, words: Words, dtype: str) -> None:
        for start, change in self._slabs():
            part = words[start : start + len(change)]
            summed = _sum(part, change, dtype)
            np.copyto(part, summed, where=change != 0)

    def _slabs(self) -> Iterator[tuple[int, Floats]]:
        for start in range(0, self.count, SLAB):
            yield start, self.slab(start, min(start + SLAB, self.count))


def _sum(words: Words, change: Floats, dtype: str) -> Words:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for afterwards
        return narrow(widen(words, dtype) + change, dtype)


def all_finite(words: Words, dtype: str) -> bool:
    """Whether no stored value is NaN or infinite; bf16 comes as its bits."""
    if dtype != "BF16":
        return bool(np.isfinite(words).all())
    bits = words.view(np.uint16)
    return all(int((bits[start : start + SLAB] & 0x7FFF).max()) < 0x7F80 for start in range(0, len(bits), SLAB))
