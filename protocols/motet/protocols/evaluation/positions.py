"""Loss by position: how fast a system finds its way into a text.

Guarantees: sums alone, over tokens whose prefix is about as long: 0-1, 2-3, 4-7, 8-15, ... tokens before them.

    sums = Positions(nats=(9.1, 7.0), tokens=(2, 2))
    [bucket.bits_per_token for bucket in sums.buckets()]
"""

import math
from typing import Self

from pydantic import Field, model_validator

from motet.protocols.documents import Strict
from motet.protocols.evaluation.sums import Count, Nats, runs_of_enough

MAX_BUCKETS = 32
"""More than any context."""


class Bucket(Strict):
    """The tokens that have from `first` to `last` tokens of their text before them."""

    first: int
    last: int
    bits_per_token: float
    tokens: int


class Positions(Strict):
    """Summed loss by position."""

    nats: tuple[Nats, ...] = Field(max_length=MAX_BUCKETS)
    """Bucket by bucket: summed negative log-likelihood, natural logarithm."""
    tokens: tuple[Count, ...] = Field(max_length=MAX_BUCKETS)
    """Bucket by bucket: how many tokens that is."""

    @model_validator(mode="after")
    def _sums_are_possible(self) -> Self:
        if len(self.nats) != len(self.tokens) or min((*self.tokens, *self.nats), default=0) < 0:
            raise ValueError("wanted a sum of nats and a count of tokens for each bucket, none of them negative")
        return self

    def coarse(self) -> Self:
        """The same sums with no bucket of few tokens: neighbours join the one among them that has the most."""
        nats, tokens = [0.0] * len(self.nats), [0] * len(self.tokens)
        for run in runs_of_enough(self.tokens):
            place = max(run, key=lambda bucket: self.tokens[bucket])
            nats[place] = sum(self.nats[bucket] for bucket in run)
            tokens[place] = sum(self.tokens[bucket] for bucket in run)
        return type(self)(nats=tuple(nats), tokens=tuple(tokens))

    def buckets(self) -> tuple[Bucket, ...]:
        """The mean loss of every bucket that has tokens."""
        sums = enumerate(zip(self.nats, self.tokens, strict=True))
        return tuple(
            Bucket(
                first=first_of(place),
                last=2 ** (place + 1) - 1,
                bits_per_token=nats / tokens / math.log(2),
                tokens=tokens,
            )
            for place, (nats, tokens) in sums
            if tokens
        )


def first_of(bucket: int) -> int:
    """The first position of a bucket: 0, 2, 4, 8, 16, ..."""
    return 2**bucket if bucket else 0
