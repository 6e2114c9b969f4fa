"""The measurement: a server on loopback, requests by HTTP, and `generate` in between, round by round.

report = run_serve(Settings(), tell=note)
"""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from motet.protocols.canonical import storage_errors
from motet.serving.api.app import build_app
from motet.serving.api.service import Service
from motet.serving.bench.material import different_sets, load_material, write_material
from motet.serving.bench.report import Report, Run, Settings
from motet.serving.engine.engine import Engine
from motet.serving.engine.loading import Composite
from motet.serving.engine.network import Network
from motet.serving.expert_sets import ExpertSet
from motet.serving.run import listening, web_server

NAME = "measured"
MOST = 16
"""Requests at once."""
_SWITCHES = 200


def run_serve(settings: Settings, *, tell: Callable[[str], None]) -> Report:
    """Measures. Raises StorageError when the disk is full."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    with TemporaryDirectory(prefix="motet-bench-") as name:
        folder = Path(name)
        with storage_errors(folder):
            write_material(folder, settings)
        composite, stock = load_material(folder)
        parameters = {"composite": _parameters(composite.model), "stock": _parameters(stock)}
        runs = []
        with _server(composite) as url:
            bench = _Bench(settings, composite, stock, url)
            bench.round(warm=True)
            for number in range(settings.rounds):
                tell(f"round {number + 1} of {settings.rounds}")
                runs.append(bench.round())
        return Report.of(settings, parameters, runs, switches(composite, _SWITCHES))


def switches(composite: Composite, number: int) -> list[float]:
    """Seconds that each switch of sets takes: from the names in a request to the mask that a pass is given."""
    network, sets = Network(composite.model), itertools.cycle(different_sets(composite.roster, MOST))
    seconds = []
    for _ in range(number):
        left_out = [name for name in composite.roster.names if name not in next(sets).names]
        begun = time.perf_counter()
        network.mask([composite.roster.choose(exclude=left_out).mask])
        seconds.append(time.perf_counter() - begun)
    return seconds


class _Bench:
    """One composite, its server and its stock export."""

    def __init__(self, settings: Settings, composite: Composite, stock: PreTrainedModel, url: str) -> None:
        self.settings, self.composite, self.stock, self.url = settings, composite, stock, url
        self._draw = torch.Generator().manual_seed(0)

    def round(self, *, warm: bool = False) -> Run:
        """Every measurement once; `warm` only the smallest, of no interest."""
        every, sets = self.composite.roster.every(), different_sets(self.composite.roster, MOST)
        speeds, by_processor, first = {"generate-4": self._generate(4)}, {}, {}
        asked = {f"server-{number}": [every] * number for number in ((1,) if warm else (1, 4, MOST))}
        for number in () if warm else (4, MOST):
            asked |= {f"same-{number}": sets[:1] * number, f"mixed-{number}": sets[:number]}
        for name, chosen in asked.items():
            tokens, wall, processor = len(chosen) * self.settings.generated, time.perf_counter(), time.process_time()
            told = self._serve(chosen)
            speeds[name] = tokens / (time.perf_counter() - wall)
            by_processor[name] = tokens / (time.process_time() - processor)
            if name.startswith("server"):
                first[name] = told
        return Run(speeds=speeds, by_processor=by_processor, first=first)

    def _prompts(self, number: int) -> list[list[int]]:
        """Never the same twice, so that nothing is known from before."""
        size = (number, self.settings.prompt)
        drawn: list[list[int]] = torch.randint(2, self.settings.vocabulary_size, size, generator=self._draw).tolist()
        return drawn

    @torch.no_grad()
    def _generate(self, number: int) -> float:
        """Tokens a second of transformers' generate on the stock export, all prompts in one batch."""
        prompts, length = torch.tensor(self._prompts(number)), self.settings.generated
        begun = time.perf_counter()
        self.stock.generate(  # type: ignore[operator]
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            pad_token_id=0,
        )
        return number * length / (time.perf_counter() - begun)

    def _serve(self, sets: Sequence[ExpertSet]) -> tuple[float, ...]:
        """A request to the server for each of the sets, all at once: seconds to their first tokens."""
        bodies = [
            {
                "model": NAME,
                "prompt": prompt,
                "max_tokens": self.settings.generated,
                "temperature": 0,
                "stream": True,
                "experts": {"include": list(chosen.names)},
            }
            for prompt, chosen in zip(self._prompts(len(sets)), sets, strict=True)
        ]
        return tuple(asyncio.run(_all(self.url, bodies)))


async def _all(url: str, bodies: Sequence[dict[str, object]]) -> list[float]:
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        return await asyncio.gather(*(_one(client, body) for body in bodies))


async def _one(client: httpx.AsyncClient, body: dict[str, object]) -> float:
    """Seconds to the first token of a request, which is read to its end."""
    begun, first = time.perf_counter(), None
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if first is None and line.startswith("data: {") and "choices" in json.loads(line[6:]):
                first = time.perf_counter() - begun
    assert first is not None  # noqa: S101 - an answer has tokens
    return first


def _parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _server(composite: Composite) -> Iterator[str]:
    with listening("127.0.0.1", 0) as listener, Engine(composite, max_batch=MOST) as engine:
        server = web_server(build_app(Service(composite, engine, NAME)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
