"""What a sum over a text must be: large enough to hide a token, small enough to be worked with.

Guarantees: of places joined so, each holds at least `LEAST_TOKENS` tokens or none; sums within the bounds keep every
ratio, difference and square of figures made from them finite.

    [sum(counts[place] for place in run) for run in runs_of_enough((40, 3, 0, 25))]      # [40, 28]
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field

LEAST_TOKENS = 10
"""A sum over fewer tokens stays where the text is: it says too much of each."""
LEAST_NATS, MOST_NATS = 1e-6, 1e15
"""Summed losses of whole texts; no model writes a text down in less, nor needs more."""
MOST_TOKENS = 1 << 42

Nats = Annotated[float, Field(le=MOST_NATS)]
Count = Annotated[int, Field(le=MOST_TOKENS)]


def runs_of_enough(counts: Sequence[int]) -> list[range]:
    """The places in runs, from the first on, that hold `LEAST_TOKENS` each; the last takes what is left over.

    All of it is one run if there are not that many tokens in all.
    """
    ends, held = [0], 0
    for place, count in enumerate(counts):
        held += count
        if held >= LEAST_TOKENS:
            ends.append(place + 1)
            held = 0
    ends[1:] = [*ends[1:-1], len(counts)]
    return [range(first, last) for first, last in pairwise(ends) if first < last]
