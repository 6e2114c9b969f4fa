"""A server that is being stopped: what is under way ends, what comes is told so, and then nobody listens."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace

import httpx
import pytest
import uvicorn

from motet.serving.api.app import build_app
from motet.serving.api.service import Service
from motet.serving.engine.engine import Engine
from motet.serving.engine.loading import Composite
from motet.serving.hooks import Hooks, Record
from motet.serving.run import listening, web_server

from .conftest import NAME, tiny_composite

LONG = {"model": NAME, "prompt": "x", "temperature": 0, "max_tokens": 4000, "stream": True}


@pytest.fixture(scope="module")
def patient() -> Composite:
    """Whose answers are long, for no token ends them."""
    return replace(tiny_composite(context=4096), ends=frozenset())


@contextmanager
def answering(
    composite: Composite, *, grace: int, books: list[Record] | None = None
) -> Iterator[tuple[uvicorn.Server, threading.Thread, str]]:
    hooks = Hooks() if books is None else Hooks(meter=books.append)
    with listening("127.0.0.1", 0) as listener, Engine(composite) as engine:
        server = web_server(build_app(Service(composite, engine, NAME, hooks)), grace=grace)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield server, thread, f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.timeout(120)
def test_while_answers_are_finished_requests_are_told_to_go_elsewhere(patient: Composite) -> None:
    with (
        answering(patient, grace=60) as (server, _, url),
        httpx.stream("POST", f"{url}/v1/completions", json=LONG, timeout=60) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        assert '"finish_reason":null' in next(lines)
        server.should_exit = True
        while (health := httpx.get(f"{url}/healthz", timeout=60)).status_code == 200:
            time.sleep(0.02)
        refused = httpx.post(f"{url}/v1/completions", json=LONG, timeout=60)
        assert '"finish_reason":null' in next(lines)
    assert (health.status_code, health.json()["status"]) == (503, "stopping")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert int(refused.headers["retry-after"]) >= 1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", timeout=60)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("insisting", [False, True])
def test_answers_that_do_not_end_in_time_are_broken_off_and_on_the_books(patient: Composite, insisting: bool) -> None:
    """In its time, or at once when the server is told a second time."""
    books: list[Record] = []
    with (
        answering(patient, grace=60 if insisting else 1, books=books) as (server, thread, url),
        httpx.stream("POST", f"{url}/v1/completions", json=LONG, timeout=60) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        server.should_exit = True
        time.sleep(0.3)
        assert thread.is_alive()
        server.force_exit = insisting
        thread.join(30)
        assert not thread.is_alive()
        with suppress(httpx.TransportError):  # only if the server was told a second time
            assert not any('"finish_reason":"length"' in line for line in lines)
    assert [1 <= record.generated_tokens < LONG["max_tokens"] for record in books] == [True]


@pytest.mark.timeout(120)
def test_in_time_both_ways_of_answering_are_on_the_books(patient: Composite) -> None:
    books: list[Record] = []
    with answering(patient, grace=1, books=books) as (server, _, url), ThreadPoolExecutor(2) as clients:
        asked = [
            clients.submit(httpx.post, f"{url}/v1/completions", json=LONG | {"stream": stream}, timeout=60)
            for stream in (True, False)
        ]
        while httpx.get(f"{url}/healthz", timeout=60).json()["running"] < 2:
            time.sleep(0.02)
        server.should_exit = True
        wait(asked)
    assert len(books) == 2
