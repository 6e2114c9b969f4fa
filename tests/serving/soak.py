"""Many clients, random sets, cancellations and bad bodies: what the soak tests start, at any size.

outcome = asyncio.run(soak(url, composite, process, requests=200, clients=32))
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import psutil
import torch

from motet.serving.engine.loading import Composite
from motet.serving.engine.network import Network, Row

from .conftest import NAME

NEAR_TIE = 1e-4
BAD_BODIES = (
    *(b"{", b"null", b"[1]", b"\xff", b'{"model": "demo"}', b'{"model": "demo", "prompt": "x", "unknown": 1}'),
    b'{"model": "demo:-nobody", "prompt": "x"}',
    b'{"model": "demo", "prompt": "x", "experts": {"include": []}}',
    json.dumps({"model": NAME, "prompt": "x" * 5000}).encode(),
    json.dumps({"model": NAME, "prompt": "x", "max_tokens": 10**6}).encode(),
)


@dataclass
class Outcome:
    """What came back: statuses, whole answers with what was asked, how often the queue was full, resident bytes."""

    statuses: Counter[int] = field(default_factory=Counter)
    answers: list[tuple[tuple[int, ...], tuple[str, ...], list[int]]] = field(default_factory=list)
    cancelled: int = 0
    full: int = 0
    resident: list[int] = field(default_factory=list)


async def soak(url: str, composite: Composite, process: psutil.Process, *, requests: int, clients: int) -> Outcome:
    """So many requests in all from so many clients, each of which asks the next thing when it has its answer."""
    outcome, draw = Outcome(), random.Random(0)
    asked = iter(range(requests))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def ask_on() -> None:
            for _ in asked:
                await _ask(client, composite.roster.names, draw, outcome)
                outcome.resident.append(process.memory_info().rss)

        await asyncio.gather(*(ask_on() for _ in range(clients)))
    return outcome


async def _ask(client: httpx.AsyncClient, names: Sequence[str], draw: random.Random, outcome: Outcome) -> None:
    what = draw.random()
    if what < 0.15:
        headers = {"content-type": "application/json"}
        found = await client.post("/v1/completions", content=draw.choice(BAD_BODIES), headers=headers)
        outcome.statuses[found.status_code] += 1
        return
    kept = ("anchor", *(name for name in names[1:] if draw.random() < 0.6))
    beginning = (draw.choice((5, 6)), draw.choice((7, 8)), 9) * draw.choice((1, 8))  # many begin alike
    prompt = (*beginning, *(draw.randrange(5, 200) for _ in range(draw.randint(1, 20))))
    body = {"model": NAME, "prompt": list(prompt), "temperature": 0, "max_tokens": draw.randint(1, 24)}
    body |= {"experts": {"include": list(kept)}, "attribution": True}
    if what < 0.35:
        await _leave_early(client, body | {"stream": True, "max_tokens": 60}, draw.randint(0, 5), outcome)
        return
    while (found := await client.post("/v1/completions", json=body)).status_code == 429:
        outcome.full += 1
        assert int(found.headers["retry-after"]) >= 1
        await asyncio.sleep(0.1)
    outcome.statuses[found.status_code] += 1
    if found.status_code == 200:
        told = found.json()["choices"][0]["attribution"]["tokens"]
        outcome.answers.append((prompt, kept, [token["id"] for token in told]))


async def _leave_early(client: httpx.AsyncClient, body: dict, after: int, outcome: Outcome) -> None:
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        outcome.statuses[answer.status_code] += 1
        lines = 0
        async for _ in answer.aiter_lines():
            lines += 1
            if lines > after:
                outcome.cancelled += 1
                return


def lead_where_it_differs(
    composite: Composite, prompt: Sequence[int], kept: Sequence[str], said: Sequence[int]
) -> float | None:
    """By how much the likeliest token led where an answer first differs from the one given alone; None if nowhere."""
    network, chosen = Network(composite.model), composite.roster.choose(include=kept)
    state, pending = network.new_state(chosen.digest), tuple(prompt)
    for token in said:
        logits = network.run([Row(state=state, tokens=pending, mask=chosen.mask)]).logits[0]
        if int(logits.argmax()) != token:
            top = torch.topk(logits, 2).values
            return float(top[0] - top[1])
        pending = (token,)
    return None
