"""One sequence on its way: the prompt, what was generated, the state behind it, and how it ends.

sequence = Running(ticket, sample=0, state=state, tokenizer=tokenizer, ends=frozenset({2}))
sequence.pending                                  # tokens that the model has not seen
sequence.take(logits, shares)                     # draws the next token and tells of it
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from motet.serving.engine.job import FinishReason, Job, Step, Token
from motet.serving.engine.sampling import Sampler, likeliest
from motet.serving.engine.state import State
from motet.serving.engine.text import TextStream

Deliver = Callable[[Step], None]
_LOG = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Ticket:
    """A job that was handed in, when, and whom to tell; `cancelled` may be set from any thread, once and for all."""

    job: Job
    deliver: Deliver
    cancelled: bool = field(default=False, init=False)
    since: float = field(default_factory=time.monotonic, init=False)

    def tell(self, step: Step) -> None:
        """Hands a step over; somebody who cannot be told any more has cancelled."""
        try:
            self.deliver(step)
        except Exception:  # the receiver's own trouble must not end the others' sequences
            self.cancelled = True


class Running:
    """A sample of a job, in the batch."""

    def __init__(self, ticket: Ticket, *, sample: int, state: State, tokenizer: Any, ends: frozenset[int]) -> None:  # noqa: ANN401
        job = ticket.job
        self.ticket, self.sample, self.state = ticket, sample, state
        self.tokens = list(job.prompt)
        self.cached = state.length
        self.finish: FinishReason | None = None
        self._tokenizer, self._ends = tokenizer, ends
        self._sampler = Sampler(job.sampling, sample=sample)
        self._text = TextStream(tokenizer, job.prompt, stop=job.sampling.stop)

    @property
    def pending(self) -> Sequence[int]:
        """The tokens that are not in the state."""
        return self.tokens[self.state.length :]

    @property
    def generated(self) -> int:
        """How many tokens were generated."""
        return len(self.tokens) - len(self.ticket.job.prompt)

    def sibling(self, sample: int) -> "Running":
        """Another sample of the job, from the same prompt, with a state of its own."""
        return Running(
            self.ticket,
            sample=sample,
            state=self.state.prefix(self.state.length),
            tokenizer=self._tokenizer,
            ends=self._ends,
        )

    def take(self, logits: Tensor, shares: Tensor) -> None:
        """Draws the next token from logits (vocabulary,), made with gate `shares` (experts,), and tells of it.

        Where that cannot be done, for values that are not finite, say, the sequence ends with "error".
        """
        try:
            self._take(logits, shares)
        except Exception:
            _LOG.exception("a sequence failed; the others go on")
            self.end("error")

    def end(self, reason: FinishReason) -> None:
        """Ends it before its time; what was held back of the text is told, if it can be read."""
        self.finish = reason
        try:
            text = self._text.rest()
        except Exception:
            _LOG.exception("the end of an answer cannot be read")
            text = ""
        self._tell(None, text)

    def _take(self, logits: Tensor, shares: Tensor) -> None:
        if not bool(logits.isfinite().all()):
            raise ArithmeticError("saw logits that are not finite, wanted numbers; an expert or the anchor is broken")
        drawn = self._sampler.draw(logits)
        token = self._token(drawn, logits, shares)
        self.tokens.append(drawn)
        ended = drawn in self._ends
        text = "" if ended else self._text.push(drawn)
        if ended or self._text.stopped:
            self.finish = "stop"
        elif self.generated >= self.ticket.job.sampling.max_tokens:
            self.finish = "length"
        if self.finish:
            text += self._text.rest()
            self.finish = "stop" if self._text.stopped else self.finish
        self._tell(token, text)

    def _tell(self, token: Token | None, text: str) -> None:
        self.ticket.tell(Step(sample=self.sample, token=token, text=text, finish=self.finish, cached=self.cached))

    def _token(self, drawn: int, logits: Tensor, shares: Tensor) -> Token:
        token = Token(id=drawn, text=self._read(drawn), shares=tuple(shares.tolist()))
        wanted = self.ticket.job.sampling.logprobs
        if wanted is None:
            return token
        logprob, top = likeliest(logits, drawn, wanted)
        return replace(token, logprob=logprob, likeliest=tuple((each, self._read(each), value) for each, value in top))

    def _read(self, token: int) -> str:
        read: str = self._tokenizer.decode([token])
        return read
