"""One request: its record is kept once, whoever leaves and when; and how much is under way is told who may refuse."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import anyio
import pytest
from starlette.concurrency import run_in_threadpool

from motet.protocols.errors import StorageError
from motet.serving.api.answer import Answer
from motet.serving.api.service import Service
from motet.serving.engine.engine import Engine
from motet.serving.engine.job import Job, Sampling
from motet.serving.engine.loading import Composite
from motet.serving.hooks import Access, Hooks, Record

from .conftest import NAME


def played(composite: Composite, hooks: Hooks, scene: Callable[[Service], Awaitable[None]]) -> None:
    async def scenario(service: Service) -> None:
        await scene(service)

    with Engine(composite, max_batch=8) as engine:
        asyncio.run(scenario(Service(composite, engine, NAME, hooks)))


def asked(service: Service, *samples: int) -> Answer:
    sampling = Sampling(max_tokens=2, temperature=0.0)
    experts = service.composite.roster.every()
    jobs = [Job(prompt=(1, 17, 4), experts=experts, sampling=sampling, samples=each) for each in samples]
    return Answer(service, Access(), endpoint="/v1/completions", jobs=jobs)


def test_a_record_that_waits_for_a_thread_is_kept_though_its_client_has_gone(composite: Composite) -> None:
    records: list[Record] = []

    async def scene(service: Service) -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1
        free = threading.Event()
        busy = asyncio.ensure_future(run_in_threadpool(free.wait, 20))
        answer = asked(service, 1)
        whole = asyncio.ensure_future(answer.whole())
        while answer.choices[0].finish is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        whole.cancel()
        with suppress(asyncio.CancelledError):
            await whole
        leaving = asyncio.ensure_future(answer.leave())
        await asyncio.sleep(0.05)
        assert (records, list(service.under_way)) == ([], [answer])
        free.set()
        await asyncio.gather(busy, leaving)
        await answer.leave()
        assert not service.under_way

    played(composite, Hooks(meter=records.append), scene)
    assert [record.generated_tokens for record in records] == [2]
    assert records[0].choices[0].finish_reason == "length"


def test_who_may_refuse_is_told_the_choices_of_every_answer_under_way(composite: Composite) -> None:
    told: list[list[int]] = []

    def ready(under_way: Sequence[int]) -> None:
        told.append([*sorted(under_way[:-1]), under_way[-1]])
        if len(told) == 3:
            raise StorageError("no room")

    async def scene(service: Service) -> None:
        first, second = asked(service, 3), asked(service, 2, 2)
        with pytest.raises(StorageError):
            asked(service, 5)
        fourth = asked(service, 1)
        for each in (first, second, fourth):
            await each.whole()
            await each.leave()
        await asked(service, 6).leave()

    played(composite, Hooks(ready=ready), scene)
    assert told == [[3], [3, 4], [3, 4, 5], [3, 4, 1], [6]]


def test_a_record_that_could_not_be_kept_is_no_longer_under_way(composite: Composite) -> None:
    def full(record: Record) -> None:
        raise StorageError("no space left on device")

    async def scene(service: Service) -> None:
        answer = asked(service, 1)
        with pytest.raises(StorageError):
            await answer.whole()
        await answer.leave()
        assert not service.under_way

    played(composite, Hooks(meter=full), scene)
