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

from motet.serving.engine.job import Job, Sampling
from motet.serving.engine.loading import Composite

from .conftest import NAME
from .judge import Said

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
    answers: list[tuple[Job, list[Said]]] = field(default_factory=list)
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
                await _ask(client, composite, draw, outcome)
                outcome.resident.append(process.memory_info().rss)

        await asyncio.gather(*(ask_on() for _ in range(clients)))
    return outcome


async def _ask(client: httpx.AsyncClient, composite: Composite, draw: random.Random, outcome: Outcome) -> None:
    what = draw.random()
    if what < 0.15:
        headers = {"content-type": "application/json"}
        found = await client.post("/v1/completions", content=draw.choice(BAD_BODIES), headers=headers)
        outcome.statuses[found.status_code] += 1
        return
    path, body, job = _drawn(composite, draw)
    if what < 0.35:
        await _leave_early(client, path, body | {"stream": True, "max_tokens": 60}, draw.randint(0, 5), outcome)
        return
    while (found := await client.post(path, json=body)).status_code == 429:
        outcome.full += 1
        assert int(found.headers["retry-after"]) >= 1
        await asyncio.sleep(0.1)
    outcome.statuses[found.status_code] += 1
    if found.status_code == 200:
        outcome.answers.append((job, [_said(choice) for choice in found.json()["choices"]]))


def _drawn(composite: Composite, draw: random.Random) -> tuple[str, dict, Job]:
    """A request: its path, its body, and the job that it is. Some draw, some have two answers, stop texts, turns."""
    kept = ("anchor", *(name for name in composite.roster.names[1:] if draw.random() < 0.6))
    sampling = Sampling(
        max_tokens=draw.randint(1, 20),
        temperature=draw.choice((0.0, 0.0, 1.0)),
        seed=draw.randrange(2**40),
        stop=draw.choice(((), (), ("e", "qu"), ("A", " ", "\N{REPLACEMENT CHARACTER}"))),
    )
    samples = draw.choice((1, 1, 1, 2))
    path, asked, prompt = _conversation(composite, draw) if draw.random() < 0.25 else _prompt(draw)
    body = {"model": NAME, "experts": {"include": list(kept)}, "attribution": True, "n": samples} | asked
    body |= {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "seed": sampling.seed}
    body |= {"stop": list(sampling.stop)} if sampling.stop else {}
    chosen = composite.roster.choose(include=kept)
    return path, body, Job(prompt=tuple(prompt), experts=chosen, sampling=sampling, samples=samples)


def _prompt(draw: random.Random) -> tuple[str, dict, Sequence[int]]:
    beginning = (draw.choice((5, 6)), draw.choice((7, 8)), 9) * draw.choice((1, 8))  # many begin alike
    prompt = (*beginning, *(draw.randrange(5, 200) for _ in range(draw.randint(1, 20))))
    return "/v1/completions", {"prompt": list(prompt)}, prompt


def _conversation(composite: Composite, draw: random.Random) -> tuple[str, dict, Sequence[int]]:
    told = [{"role": "user", "content": "".join(draw.choices("abc €", k=draw.randint(1, 12)))}]
    ids = composite.tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=True, return_dict=False)
    return "/v1/chat/completions", {"messages": told}, ids


def _said(choice: dict) -> Said:
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    ids = tuple(token["id"] for token in choice["attribution"]["tokens"])
    return Said(ids=ids, text=text, finish=choice["finish_reason"])


async def _leave_early(client: httpx.AsyncClient, path: str, body: dict, after: int, outcome: Outcome) -> None:
    async with client.stream("POST", path, json=body) as answer:
        outcome.statuses[answer.status_code] += 1
        lines = 0
        async for _ in answer.aiter_lines():
            lines += 1
            if lines > after:
                outcome.cancelled += 1
                return
