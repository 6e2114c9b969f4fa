"""The scale of an encoded update, tuned on the owner's held-out text.

A ternary update keeps the signs of the largest differences; the scale that minimises the squared error keeps far less
of the expert's gain than a larger one does (ComPEFT, arXiv 2311.13171, section 2.2, tunes it too). The update is
encoded once; a handful of factors are then tried on one part of the held-out text, and what survives of the gain is
measured on the other.

    tuning, report = split(corpus.held_out)
    factor, bits = tuned(lambda factor: bits_per_byte_of(factor), around=encoding.factor)
"""

import math
from collections.abc import Callable, Sequence

from motet.protocols.canonical import bytes_digest

LOWEST, HIGHEST = 1 / 1.6, 1.8
"""The factors looked at, times the codec's own guess: on trained experts the best was always between them."""
EVALUATIONS = 6
TUNING_DOCUMENTS = 64
"""At most so many documents, and at most half of the held-out ones, are tuned on: one number needs no more."""

_GOLDEN = (math.sqrt(5) - 1) / 2


def split(documents: Sequence[str], *, at_most: int | None = TUNING_DOCUMENTS) -> tuple[list[str], list[str]]:
    """The documents to tune on, and those to report on; by content, so the order does not matter.

    A single document is reported on, and there is nothing to tune on then. `at_most` caps the first part.
    """
    ordered = sorted(documents, key=lambda document: bytes_digest(document.encode()))
    half = len(ordered) // 2
    count = half if at_most is None else min(at_most, half)
    return ordered[:count], ordered[count:]


def tuned(
    loss: Callable[[float], float], *, around: float = 1.0, evaluations: int = EVALUATIONS
) -> tuple[float, float]:
    """The factor of the least loss tried, and that loss, by golden-section search on a logarithmic scale.

    Args:
        loss: what a factor costs; called `evaluations` times.
        around: tried first; the search is from `LOWEST` to `HIGHEST` times this.
        evaluations: at least 3.
    """
    low, high = math.log(around * LOWEST), math.log(around * HIGHEST)
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    tried = {point: loss(math.exp(point)) for point in (math.log(around), *inner)}
    for _ in range(evaluations - 3):
        if tried[inner[0]] <= tried[inner[1]]:
            high, inner = inner[1], [inner[1] - _GOLDEN * (inner[1] - low), inner[0]]
            new = inner[0]
        else:
            low, inner = inner[0], [inner[1], inner[0] + _GOLDEN * (high - inner[0])]
            new = inner[1]
        tried[new] = loss(math.exp(new))
    best = min(tried, key=lambda point: (tried[point], point))
    return math.exp(best), tried[best]
