"""Widening: what a stock checkpoint's router reads beside the hidden state, in channels of its own.

The residual stream grows by channels that no layer of the anchor reads or writes: some hold one constant from the
embedding to the end, which the router reads its bias from; two for every expert carry evidence over the prefix. The
first of the two holds what a token says (`motet.moe.token_evidence`), from the embedding on; one more key-value head in
the first layer, whose queries and keys are zero and which therefore weighs all positions so far alike, leaves the
average in the second (`motet.moe.average`). Everything else computes what it did, up to rounding.

    widening = Widening.of(config, average=Average(gain=8.0, unit=0.5), constant=True)
    shape = widening.shape(treatment, stored.shape)
    widening.router_columns(priors)                      # (experts, new hidden channels)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from motet.moe.average import Average
from motet.moe.config import MotetConfig
from motet.moe.families.family import Axis, Scale, Treatment

CONSTANT = 2.0**-10
"""What constants hold: a power of two, so that dividing by it is exact, and small beside activations."""
FAINT = 2.0**-12
"""What evidence is multiplied with in the embedding, and behind the first attention in units of what that puts out: so
little that norms do not notice, and enough for float16."""
PARTS = 3
"""Constant channels: bfloat16 pieces that hold every bit of a float32, so that loading in bfloat16 keeps its digits."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Widening:
    """How far an anchor's sizes grow, and what stands where.

    head: channels of an attention head; group: query heads that share a key-value head.
    hidden, queries, keys: channels before; `heads` key-value heads are added.
    parts: constant channels; experts: closed experts whose evidence is averaged.
    """

    head: int
    group: int
    hidden: int
    queries: int
    keys: int
    parts: int = 0
    experts: int = 0
    average: Average | None = None

    @classmethod
    def of(cls, config: MotetConfig, *, average: Average | None, constant: bool) -> Self:
        """What a composite of this configuration needs."""
        anchor = config.anchor
        head = getattr(anchor, "head_dim", None) or anchor.hidden_size // anchor.num_attention_heads
        return cls(
            head=head,
            group=anchor.num_attention_heads // anchor.num_key_value_heads,
            hidden=anchor.hidden_size,
            queries=head * anchor.num_attention_heads,
            keys=head * anchor.num_key_value_heads,
            parts=PARTS if constant else 0,
            experts=0 if average is None else config.num_experts - 1,
            average=average,
        )

    @property
    def heads(self) -> int:
        """Key-value heads that are added."""
        return math.ceil(self.experts / self.head)

    @property
    def width(self) -> int:
        """The new hidden size: rows are multiples of 16 bytes in every dtype."""
        more = self.parts + 2 * self.experts
        return (self.hidden + more + 7) // 8 * 8 if more else self.hidden

    def grown(self, axis: Axis | None, size: int) -> int:
        """What an axis of this size becomes."""
        match axis:
            case "hidden":
                return size + self.width - self.hidden
            case "queries":
                return size + self.heads * self.group * self.head
            case "keys":
                return size + self.heads * self.head
            case None:
                return size

    def shape(self, treatment: Treatment, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What a tensor's shape becomes."""
        axes = (treatment.rows, treatment.columns)[: len(shape)]
        return tuple(self.grown(axis, size) for axis, size in zip(axes, shape, strict=True))

    def factor(self, scale: Scale | None) -> float:
        """What a tensor is multiplied with, so that norms over more channels stay what they were.

        With epsilon times old over new hidden size (one configuration key for all norms), the weights of a norm over
        hidden channels shrink by its square root; one over queries or keys, whose channels grow by another ratio, is
        given inputs that make up for the difference.
        """
        shrink = self.hidden / self.width
        match scale:
            case "norm":
                return math.sqrt(shrink)
            case "queries" | "keys":
                return math.sqrt(shrink * self._growth(scale))
            case "queries-norm":
                return 1 / math.sqrt(self._growth("queries"))
            case "keys-norm":
                return 1 / math.sqrt(self._growth("keys"))
            case None:
                return 1.0

    def _growth(self, axis: Axis) -> float:
        before = self.queries if axis == "queries" else self.keys
        return self.grown(axis, before) / before

    def entries(self, treatment: Treatment) -> Iterator[tuple[int, int, float]]:
        """(row, column, value) of what a tensor holds in its new places beside zeros; a vector has one column."""
        unit = 1.0 if self.average is None else self.average.unit
        for expert in range(self.experts):
            told = self.hidden + self.parts + expert
            mean, new = told + self.experts, divmod(expert, self.head)
            match treatment.new:
                case "values":
                    yield self.keys + expert, told, 1.0
                case "outputs":
                    yield mean, self.queries + new[0] * self.group * self.head + new[1], unit
                case "loudness":
                    yield mean, 0, math.sqrt(self.hidden / self.width)
                case "embedding" | None:
                    return

    def router_columns(self, priors: Array) -> Array:
        """What the router reads of the new channels, float32: (experts, new channels); `priors` (experts,) in nats."""
        columns = np.zeros((len(priors), self.width - self.hidden), "<f4")
        if self.parts:
            columns[:, : self.parts] = _pieces(priors)
        if self.average is not None:
            for expert in range(self.experts):
                columns[expert + 1, self.parts + self.experts + expert] = self.average.gain / FAINT
        return columns


def _pieces(bias: Array) -> Array:
    """What the router multiplies the constants with: (experts, parts), together the bias over the constant."""
    rest, parts = bias.astype("<f4"), []
    for _ in range(PARTS):
        part = (rest.view("<u4") & np.uint32(0xFFFF0000)).view("<f4")  # the leading bits: a bfloat16
        parts.append(part / np.float32(CONSTANT))
        rest = rest - part
    return np.stack(parts, axis=1)
