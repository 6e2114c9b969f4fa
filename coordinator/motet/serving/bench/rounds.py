"""The measurement: a server on loopback, requests by HTTP, and `generate` in between, round by round.

report = run_serve(Settings(), tell=note)
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from motet.protocols.canonical import storage_errors
from motet.serving.api.app import build_app
from motet.serving.api.service import Service
from motet.serving.bench.clients import Clients
from motet.serving.bench.material import different_sets, load_material, write_material
from motet.serving.bench.report import Report, Run, Settings
from motet.serving.engine.engine import Engine
from motet.serving.engine.loading import Composite
from motet.serving.engine.network import Network
from motet.serving.engine.threads import compute_with
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
        threads = torch.get_num_threads()  # what generate is given
        compute_with(None)
        with Clients() as clients, _server(composite) as url:
            bench = _Bench(settings, composite, stock, url, clients, threads)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """What some requests took, in seconds."""

    tokens: int
    wall: float
    processor: float
    """Of this process, which the server is in and the clients are not."""
    first: tuple[float, ...]


def _speed(taken: Sequence[_Taken], clock: Literal["wall", "processor"]) -> float:
    """Tokens a second of several measurements together."""
    seconds = [each.wall if clock == "wall" else each.processor for each in taken]
    return sum(each.tokens for each in taken) / sum(seconds)


class _Bench:
    """One composite, its server and its stock export."""

    def __init__(
        self,
        settings: Settings,
        composite: Composite,
        stock: PreTrainedModel,
        url: str,
        clients: Clients,
        threads: int,
    ) -> None:
        self.settings, self.composite, self.stock = settings, composite, stock
        self.url, self.clients, self.threads = url, clients, threads
        self._draw = torch.Generator().manual_seed(0)

    def round(self, *, warm: bool = False) -> Run:
        """Every measurement once; `warm` only the smallest, of no interest.

        What is compared to the percent, one set against many, is measured there and back, so that a machine which
        becomes slower or faster meanwhile favours neither.
        """
        every, sets = self.composite.roster.every(), different_sets(self.composite.roster, MOST)
        asked = [("server-1", [every])]
        for number in () if warm else (4, MOST):
            one, same, mixed = [every] * number, sets[:1] * number, sets[:number]
            there = [(f"server-{number}", one), (f"same-{number}", same), (f"mixed-{number}", mixed)]
            asked += there + there[::-1]
        generated, taken = self._generate(4), [(name, self._timed(chosen)) for name, chosen in asked]
        names = dict.fromkeys(name for name, _ in taken)
        of = {name: [each for other, each in taken if other == name] for name in names}
        return Run(
            speeds={"generate-4": generated} | {name: _speed(each, "wall") for name, each in of.items()},
            by_processor={name: _speed(each, "processor") for name, each in of.items()},
            first={name: each[0].first for name, each in of.items() if name.startswith("server")},
        )

    def _timed(self, chosen: Sequence[ExpertSet]) -> "_Taken":
        wall, processor = time.perf_counter(), time.process_time()
        first = self._serve(chosen)
        return _Taken(
            tokens=len(chosen) * self.settings.generated,
            wall=time.perf_counter() - wall,
            processor=time.process_time() - processor,
            first=first,
        )

    def _prompts(self, number: int) -> list[list[int]]:
        """Never the same twice, so that nothing is known from before."""
        size = (number, self.settings.prompt)
        drawn: list[list[int]] = torch.randint(2, self.settings.vocabulary_size, size, generator=self._draw).tolist()
        return drawn

    @torch.no_grad()
    def _generate(self, number: int) -> float:
        """Tokens a second of transformers' generate on the stock export, all prompts in one batch."""
        prompts, length = torch.tensor(self._prompts(number)), self.settings.generated
        torch.set_num_threads(self.threads)
        begun = time.perf_counter()
        self.stock.generate(  # type: ignore[operator]
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            pad_token_id=0,
        )
        speed = number * length / (time.perf_counter() - begun)
        compute_with(None)
        return speed

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
        return self.clients.ask(self.url, bodies)


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
