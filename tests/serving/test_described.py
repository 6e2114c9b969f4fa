"""What the API says of itself: answers as they are, errors in one shape, keys where they are asked for."""

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from motet.serving.api.app import build_app
from motet.serving.api.described import (
    ChatAnswer,
    ChatChunk,
    CompletionAnswer,
    ErrorAnswer,
    ExpertList,
    Health,
    ModelList,
    NamedModel,
)
from motet.serving.api.errors import Refusal
from motet.serving.api.service import Service
from motet.serving.engine.loading import Composite
from motet.serving.hooks import Access, Hooks

from .conftest import NAME, Running, running

GREEDY = {"model": NAME, "temperature": 0.0, "max_tokens": 3}
CHAT = GREEDY | {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 2}
COMPLETION = GREEDY | {"prompt": "x", "logprobs": 2}
BAD_BODIES = [b"{", b"[" * 1000, b"{}", b'{"model": "demo", "nonsense": 1}']


def with_a_key(request: Any) -> Access:
    if request.headers.get("authorization") != "Bearer good":
        raise Refusal("saw no known key, wanted one", status=401, code="invalid_api_key")
    return Access(tenant="clinic", allowed=frozenset({"math", "law"}))


@pytest.fixture(scope="module")
def keyed(composite: Composite) -> Iterator[Running]:
    with running(composite, hooks=lambda records: Hooks(keyed=True, authorise=with_a_key)) as started:
        yield started


def events(server: Running, path: str, body: dict) -> list[dict]:
    lines = httpx.post(f"{server.url}{path}", json=body | {"stream": True}, timeout=60).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_answers_are_as_they_are_described(server: Running) -> None:
    def got(path: str) -> dict:
        return httpx.get(f"{server.url}{path}").json()

    def posted(path: str, body: dict) -> dict:
        return httpx.post(f"{server.url}{path}", json=body, timeout=60).json()

    told = {"attribution": True, "n": 2}
    counted = told | {"stream_options": {"include_usage": True}}
    answers = [
        (CompletionAnswer, [posted("/v1/completions", COMPLETION | told), posted("/v1/completions", COMPLETION)]),
        (CompletionAnswer, events(server, "/v1/completions", COMPLETION | counted)),
        (ChatAnswer, [posted("/v1/chat/completions", CHAT | told)]),
        (ChatChunk, events(server, "/v1/chat/completions", CHAT | counted)),
        (ModelList, [got("/v1/models")]),
        (NamedModel, [got(f"/v1/models/{NAME}"), got(f"/v1/models/{NAME}:-law")]),
        (ExpertList, [got("/v1/experts")]),
        (Health, [got("/healthz")]),
        (ErrorAnswer, [got("/v1/models/other"), posted("/v1/completions", {})]),
    ]
    for model, found in answers:
        for each in found:
            model.model_validate_json(json.dumps(each), strict=True, extra="forbid")


def references(value: object) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(each) for each in value.values()))
    return set().union(*(references(each) for each in value)) if isinstance(value, list) else set()


def test_the_description_holds_all_that_it_refers_to(server: Running) -> None:
    described = httpx.get(f"{server.url}/openapi.json").json()
    known = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert references(described) <= known
    answer = described["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert "422" not in answer  # FastAPI's own, which is never sent
    assert answer["4XX"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert {kind: each["schema"]["$ref"].rsplit("/", 1)[1] for kind, each in answer["200"]["content"].items()} == {
        "application/json": "ChatAnswer",
        "text/event-stream": "ChatChunk",
    }
    body = described["components"]["schemas"]["ChatRequest"]["properties"]
    assert body["tool_choice"]["enum"] == [None, "none", "auto"]
    assert "tools are not called here" in body["tool_choice"]["description"]


@pytest.mark.parametrize("wanted", [False, True])
def test_keys_are_described_where_they_are_asked_for(server: Running, composite: Composite, wanted: bool) -> None:
    service = Service(composite, server.engine, NAME, Hooks(keyed=wanted))
    described = build_app(service).openapi()
    paths = {
        path for path, each in described["paths"].items() for operation in each.values() if "security" in operation
    }
    if not wanted:
        assert paths == set()
        assert "securitySchemes" not in described["components"]
        return
    assert paths == {path for path in described["paths"] if path.startswith("/v1/")}
    scheme = described["components"]["securitySchemes"]["HTTPBearer"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_the_key_is_looked_at_before_the_body(keyed: Running, body: bytes) -> None:
    sent = {"content": body, "headers": {"content-type": "application/json"}}
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert httpx.post(f"{keyed.url}{path}", **sent).status_code == 401
        known = httpx.Headers(sent["headers"] | {"authorization": "Bearer good"})
        assert httpx.post(f"{keyed.url}{path}", content=body, headers=known).status_code == 400


def test_a_strangers_body_is_not_even_awaited(keyed: Running) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(keyed.url.rsplit(":", 1)[1])), timeout=20) as stranger:
        stranger.sendall(head + b"Content-Length: 4000000\r\n\r\n" + b'{"model": "demo", "prompt": [')
        assert stranger.recv(100).startswith(b"HTTP/1.1 401 ")


def test_a_model_is_found_with_experts_behind_its_name(keyed: Running) -> None:
    client = keyed.client().with_options(api_key="good")
    plain, without = client.models.retrieve(NAME), client.models.retrieve(f"{NAME}:-law")
    assert (plain.id, without.id) == (NAME, f"{NAME}:-law")
    assert plain.model_extra["experts_used"] == ["anchor", "law", "math"]
    assert without.model_extra["experts_used"] == ["anchor", "math"]
    assert without.model_extra["expert_set"] == keyed.service.composite.roster.choose(include=["math"]).digest
    with pytest.raises(openai.BadRequestError, match="unknown experts nobody; this model has anchor, art"):
        client.models.retrieve(f"{NAME}:-nobody")
    with pytest.raises(openai.NotFoundError, match="saw the model 'other'"):
        client.models.retrieve("other")


def test_a_name_may_hold_a_slash(server: Running, composite: Composite) -> None:
    app = build_app(Service(composite, server.engine, "org/tiny"))

    async def retrieved(*names: str) -> list[list[str]]:
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport) as connection,
            AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=connection) as client,
        ):
            return [(await client.models.retrieve(name)).model_extra["experts_used"] for name in names]

    assert asyncio.run(retrieved("org/tiny", "org/tiny:-law,-news")) == [
        ["anchor", "art", "law", "math", "news", "verse"],
        ["anchor", "art", "math", "verse"],
    ]
