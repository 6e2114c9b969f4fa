"""Bad input: a clear 4xx in OpenAI's shape, with what was seen and what was wanted, and a server that goes on."""

import json
import socket
from collections.abc import Sequence

import httpx
import openai
import pytest
from openai import OpenAI

from motet.protocols.errors import StorageError
from motet.serving.api.errors import Refusal
from motet.serving.api.limits import MOST_BYTES
from motet.serving.engine.loading import Composite
from motet.serving.hooks import Access, Hooks

from .conftest import NAME, Running, running

SOUND = {"model": NAME, "prompt": "hello", "max_tokens": 2}


def answered(server: Running, body: object, *, path: str = "/v1/completions") -> tuple[int, dict]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = httpx.post(f"{server.url}{path}", content=content, headers={"content-type": "application/json"}, timeout=60)
    told = found.json()["error"]
    assert told.keys() == {"message", "type", "param", "code"}
    return found.status_code, told


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        (
            {"experts": {"exclude": ["lawyer"]}},
            400,
            "saw unknown experts lawyer; this model has anchor, art, law, math",
        ),
        ({"experts": {"include": []}}, 400, "empty list"),
        ({"experts": {}}, 400, "neither include nor exclude"),
        ({"experts": {"exclude": ["anchor"]}}, 400, "the anchor always takes part"),
        ({"experts": {"include": ["law"], "exclude": ["law"]}}, 400, "both included and excluded"),
        ({"experts": ["law"]}, 400, "experts"),
        ({"model": f"{NAME}:law"}, 400, "NAME:-law,-news"),
        ({"model": f"{NAME}:-nobody"}, 400, "unknown experts nobody"),
        ({"model": f"{NAME}:-law", "experts": {"exclude": ["news"]}}, 400, "drop the other"),
        ({"model": "gpt"}, 404, f"wanted '{NAME}'"),
        ({"model": 3}, 400, "model"),
        ({"expert": {"exclude": ["law"]}}, 400, "expert: Extra inputs"),
        ({"best_of": 3}, 400, "best_of"),
        ({"prompt": "x" * 500}, 400, "prompt of 500 tokens"),
        ({"prompt": "x" * 190, "max_tokens": 3}, 400, "192 together at most"),
        ({"prompt": ""}, 200, ""),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [[]]}, 400, "without tokens"),
        ({"prompt": [99999]}, 400, "ids below 259"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": [10**40]}, 400, "ids below 259"),
        ({"prompt": ["a"] * 65}, 400, "at most 64 items"),
        ({"prompt": "\ud800"}, 400, "surrogate"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"stop": ""}, 400, "stop"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10**30}, 400, "192 together at most"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": float("nan")}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 9}, 400, "wanted 8 at most"),
        ({"seed": 2**70}, 400, "seed"),
        ({"stream_options": {"include_usage": True}}, 400, "stream: true"),
        ({"logprobs": 6}, 400, "logprobs"),
    ],
)
def test_a_request_that_cannot_be_used(server: Running, changes: dict, status: int, said: str) -> None:
    if status == 200:
        assert httpx.post(f"{server.url}/v1/completions", json=SOUND | changes, timeout=60).status_code == 200
        return
    found, told = answered(server, SOUND | changes)
    assert found == status
    assert said in told["message"]
    assert told["type"] in ("invalid_request_error", "not_found_error")


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"stop": ""}, "stop", "saw a text of 0 characters, wanted 1 to 256"),
        ({"stop": ["a", "b" * 257]}, "stop.1", "saw a text of 257 characters, wanted 1 to 256"),
        ({"stop": ["a"] * 5}, "stop", "at most 4 items"),
        ({"stop": 3}, "stop", "saw neither a text nor a list, wanted a text or"),
        ({"prompt": None}, "prompt", "saw neither a text nor a list, wanted"),
        ({"prompt": ["a", 1]}, "prompt.1", "a valid string"),
        ({"prompt": [1, "a"]}, "prompt.1", "a valid integer"),
        ({"prompt": [[1], [True]]}, "prompt.1.0", "a valid integer"),
        ({"prompt": [[1], 1]}, "prompt.1", "a valid list"),
        ({"temperature": "1"}, "temperature", "a valid number"),
        ({"temperature": True}, "temperature", "a valid number"),
        ({"top_p": "0.5"}, "top_p", "a valid number"),
        ({"a b": 1}, "a b", "Extra inputs"),
        ({"k" * (3 << 20): 1}, "k" * 80 + "...", "Extra inputs"),
    ],
    ids=range(14),
)
def test_one_fault_is_told_by_the_field_and_nothing_of_how_it_is_checked(
    server: Running, changes: dict, param: str, said: str
) -> None:
    status, told = answered(server, SOUND | changes)
    assert (status, told["param"]) == (400, param)
    assert told["message"].startswith(f"saw a request that cannot be used: {param}: ")
    assert said in told["message"]
    assert told["message"].count("; ") == 1  # before where the fields are told


@pytest.mark.parametrize("number", [0, 1, 2.0])
def test_a_temperature_may_be_written_without_a_fraction(server: Running, number: float) -> None:
    asked = SOUND | {"temperature": number, "top_p": 1}
    assert httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "Expecting property name"),
        (b'{"prompt": "\xff"}', "byte 12 is no UTF-8"),
        (b"[" * 20_000, "within one another too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "a number of too many digits"),
    ],
    ids=range(4),
)
def test_what_is_no_json_is_told_as_that(server: Running, body: bytes, said: str) -> None:
    status, told = answered(server, body)
    assert (status, told["code"], said in told["message"]) == (400, "invalid_json", True), told


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"\x00" * 50, b"[" * 50_000, b'{"model": 1e999}'),
        b'{"model": "demo", "prompt": [' + b"[]," * 60_000 + b"[]]}",
        b'{"model": "demo", "prompt": ' + b"9" * 10_000 + b"}",
    ],
    ids=range(11),
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_bodies_that_are_no_requests(server: Running, body: bytes, path: str) -> None:
    status, told = answered(server, body, path=path)
    assert status == 400
    assert len(told["message"]) < 2000


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages"),
        ([{"role": "tool", "content": "x"}], "role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "content"),
        ([{"role": "user", "content": "x" * 400}], "context"),
    ],
)
def test_conversations_that_cannot_be_answered(server: Running, messages: list, said: str) -> None:
    status, told = answered(server, {"model": NAME, "messages": messages}, path="/v1/chat/completions")
    assert status == 400
    assert said in told["message"]


def test_huge_bodies_are_refused_before_they_are_read(server: Running) -> None:
    status, told = answered(server, {"model": NAME, "prompt": "x" * MOST_BYTES})
    assert (status, told["code"]) == (413, "too_large")

    def pieces():
        yield from (b"x" * 65536 for _ in range(MOST_BYTES // 65536 + 2))

    headers = {"content-type": "application/json"}
    found = httpx.post(f"{server.url}/v1/completions", content=pieces(), headers=headers, timeout=60)
    assert (found.status_code, found.json()["error"]["code"]) == (413, "too_large")


def test_what_is_no_endpoint_is_told_so(server: Running) -> None:
    assert httpx.get(f"{server.url}/v1/nothing").json()["error"]["code"] == "unknown_url"
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as raw:
        raw.sendall(b"no http at all\r\n\r\n")
        assert b"400" in raw.recv(100)


def test_clients_raise_openais_own_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="unknown experts nobody"):
        client.completions.create(**SOUND, extra_body={"experts": {"include": ["nobody"]}})
    with pytest.raises(openai.NotFoundError):
        client.completions.create(**SOUND | {"model": "gpt"})


def test_a_model_without_a_chat_template_says_so(composite: Composite) -> None:
    template, composite.tokenizer.chat_template = composite.tokenizer.chat_template, None
    try:
        with running(composite) as server:
            asked = {"model": NAME, "messages": [{"role": "user", "content": "x"}]}
            status, told = answered(server, asked, path="/v1/chat/completions")
    finally:
        composite.tokenizer.chat_template = template
    assert (status, told["code"]) == (400, "no_chat_template")


def test_keys_decide_who_may_use_which_experts(composite: Composite) -> None:
    def access(request) -> Access:
        if request.headers.get("authorization") != "Bearer good":
            raise Refusal("saw no known key, wanted one", status=401, code="invalid_api_key")
        return Access(tenant="clinic", allowed=frozenset({"math", "art"}))

    with running(composite, hooks=lambda records: Hooks(authorise=access, meter=records.append)) as server:
        with pytest.raises(openai.AuthenticationError):
            server.client().completions.create(**SOUND)
        with pytest.raises(openai.AuthenticationError):
            server.client().models.list()
        known = server.client().with_options(api_key="good")
        found = known.completions.create(**SOUND)
        assert found.model_extra["experts_used"] == ["anchor", "art", "math"]
        with pytest.raises(openai.BadRequestError, match="saw law, wanted experts that may be used here and now"):
            known.completions.create(**SOUND, extra_body={"experts": {"include": ["law", "math"]}})
    assert [record.tenant for record in server.records] == ["clinic"]


def test_nothing_is_given_away_unrecorded(composite: Composite) -> None:
    closed = False

    def full(record) -> None:
        raise StorageError("no space left on device")

    def ready(under_way: Sequence[int]) -> None:
        if closed:
            full(None)

    with running(composite, hooks=lambda records: Hooks(meter=full, ready=ready)) as server:
        with pytest.raises(openai.InternalServerError, match="cannot record"):
            server.client().completions.create(**SOUND)
        stream = server.client().completions.create(stream=True, **SOUND)  # had begun when it could be
        told = []
        with pytest.raises(openai.APIError, match="cannot record"):
            told.extend(chunk.choices[0].finish_reason for chunk in stream)
        closed = True
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="cannot record") as caught:
                server.client().completions.create(stream=stream, **SOUND)
            assert (caught.value.status_code, caught.value.code) == (503, "not_recorded")
    assert told == [None]
