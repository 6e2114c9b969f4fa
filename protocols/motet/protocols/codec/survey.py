"""What is known of an update before a byte of it is written: thresholds and scales from one pass over its values.

A bf16 magnitude has 32768 possible values, so a histogram of its bits is the whole distribution: exact, a few
kilobytes for each tensor, the same in any order of the chunks. The global threshold is ComPEFT's (arXiv 2311.13171,
section 2: the k largest of the whole update); the scale that minimises the squared error is a tensor's mean kept
magnitude, from where the owner tunes it.

    found = ternary(histograms, density=0.2)
    found.choices                       # a threshold and a scale for each tensor
    found.factor                        # times which the scales should be, if nobody tunes them
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec.changes import SLAB, widen
from motet.protocols.codec.header import Span, TensorHeader
from motet.protocols.codec.sparse import MAX_LEVEL, Cut, ranked
from motet.protocols.errors import CodecError, NotFiniteError

MAGNITUDES = 1 << 15
INFINITE = 0x7F80
"""The bits of infinity; those of NaN are above."""
DEAD_ZONE = 0.62
"""Levels: from this many steps on a value is level 1. Above one half: a zero costs fewer bits than it is worth."""
_MAX_WEIGHT, _MAX_RANK = 1e30, 1e38
"""What a row's values are multiplied with at most, and what they are then: both are float32."""

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
            NotFiniteError: it counts NaN or infinity.
        """
        if dense[INFINITE:].any():
            raise not_finite(name)
        magnitudes = np.flatnonzero(dense)
        return cls(magnitudes=magnitudes, counts=dense[magnitudes])

    def at_least(self, threshold: int) -> tuple[int, float]:
        """How many values reach a threshold, and the sum of their magnitudes."""
        first = int(np.searchsorted(self.magnitudes, threshold))
        kept = self.counts[first:]
        return int(kept.sum()), float(_VALUES[self.magnitudes[first:]].astype(np.float64) @ kept)

    def count_of(self, magnitude: int) -> int:
        """How many values have exactly this magnitude."""
        return int(self.counts[self.magnitudes == magnitude].sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How one tensor is cut, and the scale that its header says."""

    cut: Cut
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found of all tensors together.

    `factor` is sqrt(sum of all magnitudes / sum of the kept ones), 1 for levels: what was dropped is missed, and a
    larger scale makes up for some of it. On trained experts the best factor lies within 1.8 of it either way.
    """

    choices: tuple[Choice, ...]
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowSizes:
    """Sums over the rows of a tensor, or of a chunk: of squares in each row (rows,), of magnitudes in all."""

    squares: NDArray[np.float64]
    magnitudes: float


def ternary(histograms: Sequence[Histogram], density: float) -> Survey:
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
        choices.append(Choice(cut=Cut(threshold=threshold if keep else threshold + 1), scale=1.0))
    kept = [found.at_least(choice.cut.threshold) for found, choice in zip(histograms, choices, strict=True)]
    return with_scales(choices, kept, sum(histogram.at_least(0)[1] for histogram in histograms))


def with_scales(choices: Sequence[Choice], kept: Sequence[tuple[int, float]], magnitudes: float) -> Survey:
    """The same cuts, each tensor's scale the mean of its kept magnitudes: of (how many, their sum)."""
    scaled = tuple(
        Choice(cut=choice.cut, scale=_float32(total / count) if count else 1.0)
        for choice, (count, total) in zip(choices, kept, strict=True)
    )
    held = sum(total for _, total in kept)
    return Survey(choices=scaled, factor=(magnitudes / held) ** 0.5 if held else 1.0)


def row_sizes(span: Span, bits: NDArray[np.uint16]) -> RowSizes:
    """The sizes of a chunk's rows."""
    rows, magnitudes = bits.reshape(span.rows, span.columns), 0.0
    squares = np.empty(span.rows, np.float64)
    step = max(1, SLAB // span.columns)
    for start in range(0, span.rows, step):
        values = widen(rows[start : start + step], "BF16").astype(np.float64)
        squares[start : start + step] = (values * values).sum(axis=1)
        magnitudes += float(np.abs(values).sum())
    return RowSizes(squares=squares, magnitudes=magnitudes)


def row_weights(
    squares: Sequence[NDArray[np.float64]], tensors: Sequence[TensorHeader], balance: float
) -> list[NDArray[np.float32]]:
    """What each row's values are multiplied with before they compete: (rms of all / rms of the row)^balance."""
    values = max(1, sum(tensor.values for tensor in tensors))
    whole = float(sum(part.sum() for part in squares)) / values
    weights = []
    for part, tensor in zip(squares, tensors, strict=True):
        means = part / tensor.columns
        ratios = np.divide(whole, means, out=np.ones_like(means), where=means > 0)
        most = np.divide(_MAX_RANK, np.sqrt(part), out=np.full_like(part, _MAX_WEIGHT), where=part > 0)
        weights.append(np.minimum(ratios ** (balance / 2), np.minimum(most, _MAX_WEIGHT)).astype(np.float32))
    return weights


def kept(bits: NDArray[np.uint16], span: Span, cut: Cut) -> NDArray[np.uint16]:
    """The values of a chunk that a cut with weights keeps, zero for the others: bf16 bits (span.count,)."""
    found = ranked(bits, span, cut.weights)
    for start in range(0, len(found), SLAB):
        part = found[start : start + SLAB]
        part[:] = np.where((part & np.uint16(0x7FFF)) >= cut.threshold, bits[start : start + SLAB], 0)
    return found


def levels(histograms: Sequence[Histogram], step: float) -> Survey:
    """One step for all tensors: `step` times the root mean square of all values.

    Raises:
        CodecError: the largest value is beyond the last level.
    """
    whole = _total(histograms)
    squares = float((_VALUES[:INFINITE].astype(np.float64) ** 2) @ whole[:INFINITE])
    mean = (squares / max(1, int(whole.sum()))) ** 0.5
    size = _float32(step * mean)
    largest, reach = float(_VALUES[np.flatnonzero(whole)].max(initial=0)), MAX_LEVEL + DEAD_ZONE
    if largest > reach * size:
        raise CodecError(
            f"saw a value of {largest:g}, {largest / size:.0f} steps of {size:g}, wanted at most {MAX_LEVEL} steps: "
            f"what is above would be lost; choose a step of at least {_rounded_up(largest / mean / reach)}, or look "
            "for a diverged loss"
        )
    threshold = max(1, int(np.searchsorted(_VALUES[:INFINITE], np.float32(DEAD_ZONE * size))))
    choice = Choice(cut=Cut(threshold=threshold, step=size, dead_zone=DEAD_ZONE), scale=size)
    return Survey(choices=(choice,) * len(histograms), factor=1.0)


def not_finite(name: str) -> NotFiniteError:
    """The error for a tensor that holds NaN or infinity; the caller raises it."""
    return NotFiniteError(
        f"{name}: saw NaN or infinity, wanted finite values only; look for a diverged loss, train again"
    )


def _total(histograms: Sequence[Histogram]) -> NDArray[np.int64]:
    whole = np.zeros(MAGNITUDES, np.int64)
    for histogram in histograms:
        whole[histogram.magnitudes] += histogram.counts
    return whole


def _float32(scale: float) -> float:
    """A scale as a float32, positive and finite; whether a header may carry it is for `planning` to say."""
    limits = np.finfo(np.float32)
    return float(np.float32(min(max(scale, float(limits.tiny)), float(limits.max))))


def _rounded_up(step: float) -> float:
    """A step with three significant digits, not below the one given."""
    unit: float = 10.0 ** (math.floor(math.log10(step)) - 2)
    return float(f"{math.ceil(step / unit) * unit:.3g}")
