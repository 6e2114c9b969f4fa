"""What the endpoints share: the composite, its engine, the hooks and the counters; and how a request becomes jobs.

service = Service(composite, engine, name="demo")
access = await service.access(request)
chosen = service.named(body.model, access, experts=body.experts)
job = service.job(body, prompt, chosen, limit=16, logprobs=None)
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from motet.serving.api.errors import Refusal
from motet.serving.api.metrics import Metrics
from motet.serving.api.prompts import LONG_TEXT, require_room
from motet.serving.api.schemas import ChatRequest, CompletionRequest, Experts
from motet.serving.engine.engine import Engine
from motet.serving.engine.job import Job, Sampling
from motet.serving.engine.loading import Composite
from motet.serving.expert_sets import ANCHOR, ExpertSet, asked_by_name
from motet.serving.hooks import Access, Hooks

if TYPE_CHECKING:
    from motet.serving.api.answer import Answer

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """A composite that is served under a name."""

    composite: Composite
    engine: Engine
    name: str
    hooks: Hooks = field(default_factory=Hooks)
    metrics: Metrics = field(default_factory=Metrics)
    since: int = field(default_factory=lambda: int(time.time()))
    under_way: WeakSet["Answer"] = field(default_factory=WeakSet)
    """Answers that have begun and whose record is not kept yet."""
    long_texts: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    """Whose turn it is to have one tokenised."""

    async def access(self, request: Request) -> Access:
        """What this request may do. Raises whatever the hook refuses with."""
        return await run_in_threadpool(self.hooks.authorise, request)

    async def tokenised(self, read: Callable[[], T], *, characters: int) -> T:
        """What `read` makes of a text, in a thread.

        Long texts are read one after another, whoever sent them: as many as there are threads would keep everybody
        else from one, also from being let in.
        """
        return await to_thread.run_sync(read, limiter=self.long_texts if characters > LONG_TEXT else None)

    def usable(self, access: Access) -> frozenset[str]:
        """The names of the experts that may be used now."""
        known = frozenset(self.composite.roster.names)
        return (known if access.allowed is None else known & access.allowed) - self.hooks.withdrawn(known) | {ANCHOR}

    def named(self, model: str, access: Access, *, experts: Experts | None = None) -> ExpertSet:
        """The set that a model's name asks for, or `experts` beside it.

        Raises ExpertSetError, and Refusal for another model's name and for two sets at once.
        """
        name, include, exclude = asked_by_name(model)
        if name != self.name:
            raise Refusal(
                f"saw the model {name!r}, wanted {self.name!r}; /v1/models lists what is served",
                status=404,
                code="model_not_found",
                param="model",
            )
        if experts is not None and (include is not None or exclude):
            raise Refusal("saw experts in the model's name and in the body, wanted one of them; drop the other")
        if experts is not None:
            include = None if experts.include is None else tuple(experts.include)
            exclude = tuple(experts.exclude or ())
        return self.composite.roster.choose(include=include, exclude=exclude, allowed=self.usable(access))

    def job(
        self,
        body: CompletionRequest | ChatRequest,
        prompt: Sequence[int],
        chosen: ExpertSet,
        *,
        limit: int | None,
        logprobs: int | None,
    ) -> Job:
        """A job. `limit` is what is generated at most, None as much as there is room for. Raises Refusal."""
        room = self._room(prompt, limit)
        samples = body.n or 1
        if samples > self.engine.max_batch:
            raise Refusal(f"saw n = {samples}, wanted {self.engine.max_batch} at most", param="n")
        sampling = Sampling(
            max_tokens=room if limit is None else limit,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            stop=body.stops,
            logprobs=logprobs,
        )
        return Job(prompt=tuple(prompt), experts=chosen, sampling=sampling, samples=samples)

    def _room(self, prompt: Sequence[int], limit: int | None) -> int:
        """How many tokens can be generated."""
        context, size = self.composite.context, self.composite.vocabulary_size
        if not prompt:
            raise Refusal("saw a prompt without tokens, wanted at least one", param="prompt")
        require_room(len(prompt), limit=limit, context=context)
        if (largest := max(prompt)) >= size:
            raise Refusal(f"saw the token id {largest}, wanted ids below {size}", param="prompt")
        return context - len(prompt)
