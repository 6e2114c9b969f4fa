"""What each optimiser step is trained on: a pure function of the text, the seed and the step.

Nothing is drawn from a stream of random numbers, so a resumed run sees what an uninterrupted one would have.

    batches = Batches(own=pack(tokenizer, corpus.train, 256), public=pack(tokenizer, public.train, 256), ...)
    for ids in batches.at(step=17):      # (batch, sequence_length + 1), `accumulation` of them
        ...
"""

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from motet.moe.spans import Spans, muted, muted_tokens
from motet.protocols.errors import DataError

_TOKENIZED_AT_A_TIME = 512  # documents


def pack(
    tokenizer: Any,  # noqa: ANN401 - transformers is untyped
    documents: Sequence[str],
    sequence_length: int,
    answers: Mapping[str, Spans] | None = None,
) -> Tensor:
    """Documents end to end, each opened by BOS (or EOS), cut into rows: (rows, sequence_length + 1).

    A row's last token is the next one's first, so that every token but the very first is predicted once. Text shorter
    than a row is repeated to fill it. Of the documents in `answers`, tokens outside these spans are muted
    (`motet.moe.spans`): read, and not learnt. Raises DataError when there are no tokens.
    """
    opening = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    answers = answers or {}
    tokens = array("i")  # 4 bytes for each; Python's own integers would take ten times the text
    for start in range(0, len(documents), _TOKENIZED_AT_A_TIME):
        part = list(documents[start : start + _TOKENIZED_AT_A_TIME])
        for text, document in zip(part, muted_tokens(tokenizer, part, answers), strict=True):
            first = muted(opening) if text in answers else opening
            tokens.extend((first, *document) if document else ())
    if not tokens:
        raise DataError(f"saw no token in {len(documents)} documents, wanted text; name files with text in them")
    stream = torch.frombuffer(tokens, dtype=torch.int32)
    if len(stream) <= sequence_length:
        stream = stream.repeat(math.ceil((sequence_length + 1) / len(stream)))
    rows = (len(stream) - 1) // sequence_length
    return stream[: rows * sequence_length + 1].unfold(0, sequence_length + 1, sequence_length)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batches:
    """Own and public rows (rows, sequence_length + 1), and how a step is made of them."""

    own: Tensor
    public: Tensor
    public_share: float
    batch_size: int
    accumulation: int
    seed: int

    @property
    def rows_per_step(self) -> int:
        """Sequences in one optimiser step."""
        return self.batch_size * self.accumulation

    @property
    def tokens_per_step(self) -> int:
        """Tokens predicted in one optimiser step."""
        return self.rows_per_step * (self.own.shape[1] - 1)

    def at(self, step: int) -> Iterator[Tensor]:
        """The forward passes of a step, each (batch_size, sequence_length + 1) int64; public rows spread over them."""
        public_before, public_after = self._public_rows(step), self._public_rows(step + 1)
        own_before = step * self.rows_per_step - public_before
        own_after = (step + 1) * self.rows_per_step - public_after
        rows = [
            *_drawn(self.own, own_before, own_after, self.seed),
            *_drawn(self.public, public_before, public_after, ~self.seed),
        ]
        for part in range(self.accumulation):
            yield torch.stack(rows[part :: self.accumulation]).long()

    def _public_rows(self, steps: int) -> int:
        """Public rows in the first `steps` steps: the share's whole part, so that none is lost to rounding."""
        return math.floor(steps * self.rows_per_step * self.public_share)


def _drawn(rows: Tensor, start: int, end: int, seed: int) -> Iterator[Tensor]:
    """Rows number `start` to `end` of an endless walk: epoch after epoch, each in an order of its own."""
    for position in range(start, end):
        epoch, place = divmod(position, len(rows))
        yield rows[_order(len(rows), seed, epoch)[place]]


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    draw = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    order: list[int] = torch.randperm(count, generator=draw).tolist()
    return order
