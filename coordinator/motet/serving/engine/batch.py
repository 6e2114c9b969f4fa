"""Who is in the batch, and what the next pass computes: continuous batching (Yu et al., Orca, 2022, section 4.1).

Every pass takes one token of each sequence that generates, and `chunk` tokens of prompts: of the shortest rest first,
but a quarter of them is for the prompt that has been here longest, so that a short prompt does not wait for a long one
to be read, nor a long one for ever. Guarantees: sequences with different expert sets share passes and nothing else;
jobs begin in the order in which they came; a sequence with a withdrawn expert, or whose client has gone, gets no
further pass; what goes wrong with one sequence ends that one, and a pass that fails those that are in it.

    batch = Batch(network, tokenizer, max_batch=16)
    if batch.has_place(ticket.job): batch.begin(ticket)
    batch.step()                                                   # one pass; tickets are told
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from motet.serving.engine.job import FinishReason, Job, Step
from motet.serving.engine.network import Network, Row
from motet.serving.engine.prefixes import Prefixes
from motet.serving.engine.sequence import Running, Ticket

CHUNK = 128
"""Tokens of prompts in one pass at most, so that those who generate do not wait long for their next token."""

_LOG = logging.getLogger(__name__)
Withdrawn = Callable[[frozenset[str]], frozenset[str]]


class Batch:
    """The sequences that are being generated. Not for several threads at once."""

    def __init__(
        self,
        network: Network,
        tokenizer: Any,  # noqa: ANN401 - transformers is untyped
        *,
        max_batch: int,
        prefixes: Prefixes,
        ends: frozenset[int],
        withdrawn: Withdrawn,
        chunk: int = CHUNK,
    ) -> None:
        """`ends` are the tokens that end an answer; `withdrawn` says which experts must not be used any more."""
        self.max_batch, self.prefixes, self.chunk = max_batch, prefixes, chunk
        self.running: list[Running] = []
        self._network, self._tokenizer, self._ends, self._withdrawn = network, tokenizer, ends, withdrawn
        self.seconds = 1.0  # that a job takes from its coming to its end, a moving average
        self._names: dict[str, frozenset[str]] = {}

    @property
    def places(self) -> int:
        """How many sequences there is still a place for."""
        begun = sum(1 if each.generated else each.ticket.job.samples for each in self.running)
        return self.max_batch - begun

    def has_place(self, job: Job) -> bool:
        """Whether all samples of a job can begin."""
        return job.samples <= self.places

    def begin(self, ticket: Ticket) -> None:
        """Takes a job in; one that cannot begin, for want of memory, say, is told that it has failed."""
        job, digest = ticket.job, ticket.job.experts.digest
        try:
            state = self.prefixes.find(digest, job.prompt, salt=job.salt) or self._network.new_state(digest)
            begun = Running(ticket, sample=0, state=state, tokenizer=self._tokenizer, ends=self._ends)
        except Exception:
            _LOG.exception("a request cannot begin; the others go on")
            tell_unbegun(ticket, "error")
            return
        self._names[digest] = frozenset(job.experts.names)
        self.running.append(begun)

    def step(self) -> None:
        """One pass; does nothing when nobody is left."""
        self.end_cancelled()
        self._end_withdrawn()
        planned = self._planned()
        if not planned:
            return
        rows = [
            Row(state=each.state, tokens=each.pending[:count], mask=each.ticket.job.experts.mask)
            for each, count in planned
        ]
        try:
            outcome = self._network.run(rows)
        except Exception:  # out of memory, say
            _LOG.exception(
                "a pass of the model failed, and with it %d of %d sequences", len(planned), len(self.running)
            )
            for each, _ in planned:
                self._end(each, "error")
        else:
            for (each, _), logits, shares in zip(planned, outcome.logits, outcome.shares, strict=True):
                if not each.pending:
                    for one in self._samples(each):
                        one.take(logits, shares)
        self._leave()

    def end_all(self, reason: FinishReason) -> None:
        """Ends every sequence."""
        for each in self.running:
            self._end(each, reason)
        self.running.clear()

    def end_cancelled(self) -> None:
        """Frees the places of those whose clients have gone."""
        self.running = [each for each in self.running if not each.ticket.cancelled]

    def gone(self, tickets: list[Ticket]) -> list[Ticket]:
        """Those of the waiting tickets whose sets have a withdrawn expert."""
        used = frozenset().union(*(each.job.experts.names for each in tickets))
        names = self._withdrawn(used) if used else frozenset()
        return [each for each in tickets if names & frozenset(each.job.experts.names)] if names else []

    def _planned(self) -> list[tuple[Running, int]]:
        """Who takes part in the next pass, with how many tokens."""
        stretches = self._stretches([each for each in self.running if not each.generated])
        counts = ((each, len(each.pending) if each.generated else stretches[each]) for each in self.running)
        return [(each, count) for each, count in counts if count]

    def _stretches(self, reading: list[Running]) -> dict[Running, int]:
        """How many tokens of each prompt the next pass reads."""
        given, left = dict.fromkeys(reading, 0), self.chunk
        for each, most in [
            *((each, max(1, self.chunk // 4)) for each in reading[:1]),
            *((each, self.chunk) for each in sorted(reading, key=lambda each: len(each.pending))),
        ]:
            more = min(len(each.pending) - given[each], most, left)
            given[each] += more
            left -= more
        return given

    def _samples(self, first: Running) -> list[Running]:
        """A sequence, and when its prompt has just been read the other samples of its job."""
        if first.generated:
            return [first]
        try:
            others = [first.sibling(sample) for sample in range(1, first.ticket.job.samples)]
        except Exception:  # each has a state of its own, which needs memory
            _LOG.exception("the other samples of a request cannot begin; other requests go on")
            self._end(first, "error")
            return []
        self.running += others
        return [first, *others]

    def _end_withdrawn(self) -> None:
        used = frozenset().union(*(each.ticket.job.experts.names for each in self.running), *self._names.values())
        names = self._withdrawn(used) if used else frozenset()
        if not names:
            return
        for each in self.running:
            if names & frozenset(each.ticket.job.experts.names):
                self._end(each, "expert_withdrawn")
        self.running = [each for each in self.running if each.finish is None]
        sets = {digest for digest, members in self._names.items() if names & members}
        self.prefixes.drop(lambda digest: digest in sets)
        self._names = {digest: members for digest, members in self._names.items() if digest not in sets}

    def _end(self, each: Running, reason: FinishReason) -> None:
        if not each.generated:  # its other samples have not come to be, and end too
            tell_unbegun(each.ticket, reason)
            each.finish = reason
        else:
            each.end(reason)

    def _leave(self) -> None:
        """Those that have ended leave; their states may serve others that begin alike."""
        for each in self.running:
            if each.finish in ("stop", "length") and not each.sample:
                self.seconds += (time.monotonic() - each.ticket.since - self.seconds) / 16
                self.prefixes.keep(each.tokens, each.state, salt=each.ticket.job.salt)
        self.running = [each for each in self.running if each.finish is None]
        kept = self.prefixes.sets | {each.ticket.job.experts.digest for each in self.running}
        self._names = {digest: members for digest, members in self._names.items() if digest in kept}


def tell_unbegun(ticket: Ticket, reason: FinishReason) -> None:
    """Tells all samples of a job that they end before they have begun."""
    for sample in range(ticket.job.samples):
        ticket.tell(Step(sample=sample, finish=reason))
