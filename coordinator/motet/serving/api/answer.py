"""One request under way: its jobs in the engine, what they said so far, and its record.

Guarantees: the record is kept before the last step is handed on; a request that is left, for whatever reason and at
whatever moment, frees its places, and what it had used is recorded, as cancelled unless it had ended.

    answer = Answer(service, access, endpoint="/v1/completions", jobs=jobs)
    try:
        async for choice, step in answer.steps(): ...
    finally:
        await answer.leave()
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import anyio
from starlette.concurrency import run_in_threadpool

from motet.serving.api.errors import Refusal, refusal_of
from motet.serving.api.service import Service
from motet.serving.engine.job import FinishReason, Job, Step, Token
from motet.serving.engine.sequence import Ticket
from motet.serving.hooks import Access, Generated, Record

_LOG = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Choice:
    """One of the answers."""

    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None
    cached: int = 0

    def note(self, step: Step) -> None:
        """Takes in what is new."""
        if step.token is not None:
            self.tokens.append(step.token)
        self.text, self.finish, self.cached = self.text + step.text, step.finish, step.cached

    def generated(self) -> Generated:
        """What the record says of it."""
        shares = tuple(token.shares for token in self.tokens)
        return Generated(tokens=len(shares), finish_reason=self.finish or "cancelled", shares=shares)


class Answer:
    """The answers to one request: choice i is sample i % n of prompt i // n."""

    def __init__(self, service: Service, access: Access, *, endpoint: str, jobs: Sequence[Job]) -> None:
        """Raises QueueFull, Closing, Refusal for more jobs than may ever wait, or what `Hooks.ready` does.

        Then nothing of it is under way.
        """
        _require_room(len(jobs), service.engine.queue)
        self.choices = [Choice() for job in jobs for _ in range(job.samples)]
        service.hooks.ready([len(each.choices) for each in (*service.under_way, self)])
        self.service, self.access, self.endpoint = service, access, endpoint
        self.jobs = [replace(job, salt=access.tenant) for job in jobs]  # what is known tells other tenants nothing
        self.id, self.created, self._since = f"motet-{uuid.uuid4().hex}", int(time.time()), time.monotonic()
        self.experts = jobs[0].experts
        self._news: asyncio.Queue[tuple[int, Step]] = asyncio.Queue()
        self._keeping: asyncio.Future[None] | None = None
        self._tickets: list[Ticket] = []
        try:
            for number, job in enumerate(self.jobs):
                self._submit(job, number * job.samples)
        except Exception:
            self._cancel()
            raise
        service.under_way.add(self)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(job.prompt) for job in self.jobs)

    @property
    def generated_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(choice.tokens) for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Tokens of prompts that were known from the tenant's earlier requests with the same expert set."""
        return sum(choice.cached for choice in self.choices[:: self.jobs[0].samples])

    def usage(self) -> dict[str, object]:
        """The tokens, as OpenAI counts them."""
        prompt, generated = self.prompt_tokens, self.generated_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    async def steps(self) -> AsyncIterator[tuple[int, Step]]:
        """Every step with the number of its choice. Raises Refusal if the model failed, and what the meter raises."""
        while any(choice.finish is None for choice in self.choices):
            number, step = await self._news.get()
            self._note(number, step)
            if all(choice.finish is not None for choice in self.choices):
                await self._keep()
            yield number, step

    async def leave(self) -> None:
        """Must be called at the end, whatever it was: frees the places; records what was left before its time."""
        self._cancel()
        if self._keeping is None:
            while not self._news.empty():
                number, step = self._news.get_nowait()
                self.choices[number].note(step)
        elif self._keeping.done():
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._keep()
            except Exception as error:  # nobody is there to be told
                _LOG.error("cannot record an answer that was left: %s", refusal_of(error))

    async def whole(self) -> None:
        """Waits for the end. Raises as `steps`."""
        async for _ in self.steps():
            pass

    def _submit(self, job: Job, first: int) -> None:
        loop = asyncio.get_running_loop()

        def deliver(step: Step) -> None:
            loop.call_soon_threadsafe(self._news.put_nowait, (first + step.sample, step))

        self._tickets.append(self.service.engine.submit(job, deliver))

    def _note(self, number: int, step: Step) -> None:
        if step.token is not None and not self.generated_tokens:
            self.service.metrics.first_token.observe(time.monotonic() - self._since)
        self.choices[number].note(step)
        if step.finish == "error":
            raise Refusal("saw the model fail; the server's log says why", status=500, code="server_error")

    def _cancel(self) -> None:
        for ticket in self._tickets:
            self.service.engine.cancel(ticket)

    async def _keep(self) -> None:
        """Keeps the record, once; that goes on to its end though whoever waits for it is cancelled."""
        if self._keeping is None:
            self._keeping = asyncio.ensure_future(self._write_down(self.record()))
        await asyncio.shield(self._keeping)

    async def _write_down(self, record: Record) -> None:
        try:
            await run_in_threadpool(self.service.hooks.meter, record)
        finally:
            self.service.under_way.discard(self)
        self.service.metrics.used(record, self.cached_tokens)

    def record(self) -> Record:
        """What this answer has used."""
        composite = self.service.composite
        return Record(
            id=self.id,
            created=self.created,
            tenant=self.access.tenant,
            endpoint=self.endpoint,
            model=self.service.name,
            composite=composite.digest,
            experts=composite.roster.names,
            expert_set=self.experts.digest,
            used=self.experts.names,
            prompt_tokens=self.prompt_tokens,
            choices=tuple(choice.generated() for choice in self.choices),
        )


def _require_room(prompts: int, queue: int) -> None:
    """All of a request's prompts wait at first, so that more than the queue holds are refused for ever."""
    if prompts > queue:
        raise Refusal(
            f"saw {prompts} prompts, wanted {queue} at most, as many as may wait here (`motet serve --queue`); "
            "send them in several requests",
            param="prompt",
        )
