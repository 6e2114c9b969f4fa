"""The clients of `motet bench serve`, in a process of their own: what they do must not take the server's time.

with Clients() as clients:
    first = clients.ask(url, bodies)                    # all at once; seconds to each one's first token
"""

import asyncio
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Self

import httpx

Body = Mapping[str, object]


class Clients:
    """A process that asks."""

    def __init__(self) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def ask(self, url: str, bodies: Sequence[Body]) -> tuple[float, ...]:
        """A streamed completion for each of the bodies, all at once, read to their ends: seconds to their first tokens.

        Raises httpx.HTTPError when one is refused or breaks off.
        """
        return self._process.submit(_ask, url, bodies).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()


def _ask(url: str, bodies: Sequence[Body]) -> tuple[float, ...]:
    return tuple(asyncio.run(_all(url, bodies)))


async def _all(url: str, bodies: Sequence[Body]) -> list[float]:
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        return await asyncio.gather(*(_one(client, body) for body in bodies))


async def _one(client: httpx.AsyncClient, body: Body) -> float:
    begun, first = time.perf_counter(), None
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if first is None and line.startswith("data: {") and "choices" in json.loads(line[6:]):
                first = time.perf_counter() - begun
    assert first is not None  # noqa: S101 - an answer has tokens
    return first
