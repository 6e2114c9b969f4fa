"""A real server on loopback with a tiny composite of full and low-rank experts, and OpenAI's own client."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from openai import OpenAI

from motet.moe import MotetForCausalLM
from motet.serving.api.app import build_app
from motet.serving.api.service import Service
from motet.serving.engine.engine import Engine
from motet.serving.engine.loading import Composite, in_memory
from motet.serving.hooks import Hooks, Record
from motet.serving.run import listening, web_server

from ..conftest import byte_tokenizer
from ..moe.mixed_kinds import mixed

ANCHOR_DIGEST, COMPOSITE_DIGEST = "sha256:" + "a" * 64, "sha256:" + "c" * 64
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
NAME = "demo"


def tiny_composite(context: int = 192, **changes: Any) -> Composite:
    """art, math and verse are low-rank, law and news full; the answers of so small a model go on for ever."""
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model: MotetForCausalLM = mixed(vocab_size=len(tokenizer), max_position_embeddings=context, **changes)
    return in_memory(model, tokenizer, anchor=ANCHOR_DIGEST, digest=COMPOSITE_DIGEST)


@dataclass
class Running:
    """A server: where it is, its service, and what its meter was given."""

    url: str
    service: Service
    records: list[Record] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        return self.service.engine

    def client(self, **settings: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", **{"max_retries": 0, "timeout": 60} | settings)


@contextmanager
def running(
    composite: Composite, *, hooks: Callable[[list[Record]], Hooks] | None = None, **settings: Any
) -> Iterator[Running]:
    records: list[Record] = []
    chosen = Hooks(meter=records.append) if hooks is None else hooks(records)
    with listening("127.0.0.1", 0) as listener, Engine(composite, withdrawn=chosen.withdrawn, **settings) as engine:
        service = Service(composite, engine, NAME, chosen)
        server = web_server(build_app(service), grace=5)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", service, records)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def composite() -> Composite:
    return tiny_composite()


@pytest.fixture(scope="session")
def server(composite: Composite) -> Iterator[Running]:
    with running(composite, max_batch=8) as started:
        yield started


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[OpenAI]:
    with server.client() as connected:
        yield connected
