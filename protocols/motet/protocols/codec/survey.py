"""What is known of an update before a byte of it is written: thresholds and scales from one pass over its values.

A bf16 magnitude has 32768 possible values, so a histogram of its bits is the whole distribution: exact, a few
kilobytes for each tensor, the same in any order of the chunks. The global threshold is ComPEFT's (arXiv 2311.13171,
section 2: the k largest of the whole update); the scale that minimises the squared error is a tensor's mean kept
magnitude, from where the owner tunes it.

    survey = Survey(histograms)                  # int64 (tensors, 32768), or their non-zero parts
    cuts = survey.ternary(density=0.2)           # a threshold and a scale for each tensor
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec.header import MAX_SCALE
from motet.protocols.codec.sparse import Cut
from motet.protocols.errors import CodecError

MAGNITUDES = 1 << 15
INFINITE = 0x7F80
"""The bits of infinity; those of NaN are above."""
DEAD_ZONE = 0.62
"""Levels: from this many steps on a value is level 1. Above one half: a zero costs fewer bits than it is worth."""

_VALUES = (np.arange(MAGNITUDES, dtype=np.uint32) << 16).view(np.float32)
"""Magnitude bits -> magnitude."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """How often each magnitude occurs in one tensor; only those that do."""

    magnitudes: NDArray[np.int64]
    """Ascending, as bits."""
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, name: str, dense: NDArray[np.int64]) -> "Histogram":
        """The non-zero part of a whole histogram.

        Raises:
            CodecError: it counts NaN or infinity.
        """
        if dense[INFINITE:].any():
            raise CodecError(
                f"{name}: saw NaN or infinity, wanted finite values only; look for a diverged loss, train again"
            )
        magnitudes = np.flatnonzero(dense)
        return cls(magnitudes=magnitudes, counts=dense[magnitudes])

    def at_least(self, threshold: int) -> tuple[int, float]:
        """How many values reach a threshold, and the sum of their magnitudes."""
        first = int(np.searchsorted(self.magnitudes, threshold))
        kept = self.counts[first:]
        return int(kept.sum()), float(_VALUES[self.magnitudes[first:]].astype(np.float64) @ kept)

    def count_of(self, magnitude: int) -> int:
        """How many values have exactly this magnitude."""
        first = int(np.searchsorted(self.magnitudes, magnitude))
        return int(self.counts[first]) if self.magnitudes[first : first + 1] == magnitude else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How one tensor is cut, and the scale that its header says."""

    cut: Cut
    scale: float


def ternary(histograms: Sequence[Histogram], density: float) -> list[Choice]:
    """Keep the largest `density` of all values, zeros never; a tensor's scale is its mean kept magnitude.

    Values that tie at the threshold are kept in the first tensors and dropped in the others, to come near `density`.
    """
    whole = _total(histograms)
    wanted = round(density * int(whole.sum()))
    above = np.cumsum(whole[::-1])[::-1]  # values that reach each magnitude
    threshold = max(1, int(np.searchsorted(-above, -wanted, side="right")) - 1)
    quota = wanted - int(above[threshold + 1]) if threshold + 1 < MAGNITUDES else wanted
    choices = []
    for histogram in histograms:
        ties = histogram.count_of(threshold)
        keep = ties <= 2 * quota
        quota -= ties if keep else 0
        choices.append(_ternary_choice(histogram, threshold if keep else threshold + 1))
    return choices


def levels(histograms: Sequence[Histogram], step: float) -> list[Choice]:
    """One step for all tensors: `step` times the root mean square of all values."""
    whole = _total(histograms)
    squares = float((_VALUES[:INFINITE].astype(np.float64) ** 2) @ whole[:INFINITE])
    size = _float32(step * (squares / max(1, int(whole.sum()))) ** 0.5)
    threshold = max(1, int(np.searchsorted(_VALUES[:INFINITE], np.float32(DEAD_ZONE * size))))
    return [Choice(cut=Cut(threshold=threshold, step=size, dead_zone=DEAD_ZONE), scale=size) for _ in histograms]


def _total(histograms: Sequence[Histogram]) -> NDArray[np.int64]:
    whole = np.zeros(MAGNITUDES, np.int64)
    for histogram in histograms:
        whole[histogram.magnitudes] += histogram.counts
    return whole


def _ternary_choice(histogram: Histogram, threshold: int) -> Choice:
    kept, total = histogram.at_least(threshold)
    return Choice(cut=Cut(threshold=threshold), scale=_float32(total / kept) if kept else 1.0)


def _float32(scale: float) -> float:
    """A scale as the header carries it: a float32, positive and capped."""
    return float(np.float32(min(max(scale, float(np.finfo(np.float32).tiny)), MAX_SCALE)))
