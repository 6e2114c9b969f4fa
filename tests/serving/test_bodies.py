"""Bodies that would hold up everybody else: refused before they are checked, with what was seen and what was wanted."""

import asyncio
import gc
import json
import signal
from dataclasses import replace

import httpx
import pytest
from anyio import CapacityLimiter
from openai import OpenAI

from motet.serving.api.app import build_app
from motet.serving.api.bodies import MOST_BRACKETS, MOST_COMMAS, MOST_FIELDS, MOST_OBJECTS, read_json
from motet.serving.api.prompts import LONG_TEXT
from motet.serving.api.schemas import MAX_IDS, MAX_NAME, MAX_NAMES, ChatRequest, CompletionRequest
from motet.serving.api.service import Service
from motet.serving.engine.loading import Composite
from motet.serving.run import ServerSettings, serve

from .conftest import NAME, Running
from .test_refusals import answered

MESSAGE = {"role": "user", "content": "a"}
PART = {"type": "text", "text": "a"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def fields(count: int) -> dict[str, int]:
    return {f"k{number}": 1 for number in range(count)}


@pytest.mark.parametrize(
    ("path", "changes", "said"),
    [
        (CHAT, {"messages": [MESSAGE] * 100_000}, "100,002 of [ and {, wanted 65,536 at most, and 4,096 objects"),
        (CHAT, {"messages": [MESSAGE] * MOST_OBJECTS}, "more than 4,096 objects"),
        (CHAT, {"messages": [{"role": "user", "content": [PART] * MOST_OBJECTS}]}, "more than 4,096 objects"),
        (CHAT, {"messages": [MESSAGE | fields(300)]}, "an object of 302 fields, wanted 256"),
        (CHAT, {"messages": [MESSAGE], "tools": [{}] * MOST_OBJECTS}, "more than 4,096 objects"),
        (TEXT, {"prompt": [[]] * 100_000}, "100,002 of [ and {"),
        (TEXT, {"prompt": ["a"] * 300_000}, "of , and :, wanted 262,144"),
        (TEXT, {"prompt": [1] * 300_000}, "of , and :, wanted 262,144"),
        (TEXT, {"prompt": "a", "logit_bias": fields(MOST_FIELDS + 1)}, "an object of 257 fields"),
        (TEXT, {"prompt": "a", **fields(200_000)}, "of , and :"),
        (TEXT, {"prompt": "a", "experts": {"exclude": [1] * 300_000}}, "of , and :"),
        (TEXT, {"prompt": "a", "experts": fields(1000)}, "an object of 1,000 fields"),
    ],
    ids=range(12),
)
def test_a_body_that_takes_long_to_check(server: Running, path: str, changes: dict, said: str) -> None:
    status, told = answered(server, {"model": NAME} | changes, path=path)
    assert (status, told["code"], told["type"]) == (413, "too_large", "invalid_request_error")
    assert said in told["message"]
    assert len(told["message"]) < 300


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": [1] * (MAX_IDS - 100)}, "prompt of 262044 tokens"),
        ({"prompt": [99_999] * 500}, "prompt of 500 tokens"),
        ({"prompt": ["a"] * 100_000}, "at most 64 items"),
        ({"prompt": "a", "stop": ["a"] * 100_000}, "at most 4 items"),
        ({"prompt": "a", "stop": [1] * 100_000}, "stop"),
        ({"prompt": "a", "experts": {"include": ["law"] * (MAX_NAMES + 1)}}, "at most 1024 items"),
        ({"prompt": "a", "experts": {"exclude": [1] * 100_000}}, "exclude.0"),
        ({"prompt": "a", "model": f"{NAME}:" + "-law," * MAX_NAME}, "at most 65536 characters"),
        ({"prompt": "a", "logit_bias": [[[[[1]]]]] * 1000}, "logit_bias"),
    ],
    ids=range(9),
)
def test_a_long_list_is_refused_at_the_first_that_is_wrong(server: Running, changes: dict, said: str) -> None:
    status, told = answered(server, {"model": NAME} | changes)
    assert status == 400
    assert said in told["message"]
    assert len(told["message"]) < 1000


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"experts": {"include": ["x" * (3 << 20)]}}, 400, "this model has anchor, art, law"),
        ({"experts": {"exclude": [f"{number:03000d}" for number in range(MAX_NAMES)]}}, 400, "this model has anchor"),
        ({"model": "x" * MAX_NAME}, 404, "/v1/models lists what is served"),
        ({"model": f"{NAME}:{'x' * 60_000}"}, 400, "with these alone"),
    ],
    ids=range(4),
)
def test_long_names_are_not_sent_back_whole(server: Running, changes: dict, status: int, said: str) -> None:
    found, told = answered(server, {"model": NAME, "prompt": "a"} | changes)
    assert (found, said in told["message"]) == (status, True), told
    assert len(told["message"]) < 5000


def test_as_many_messages_as_there_may_be_are_read(client: OpenAI) -> None:
    messages = [{"role": "user", "content": ""}] * (MOST_OBJECTS - 1)
    body = json.dumps({"model": NAME, "messages": messages}).encode()
    assert len(ChatRequest.model_validate(read_json(body)).messages) == MOST_OBJECTS - 1
    answer = client.chat.completions.create(model=NAME, messages=[MESSAGE] * 10, max_tokens=1)
    assert answer.usage.prompt_tokens > 10


def test_marks_in_a_text_count_and_what_fits_a_model_has_fewer() -> None:
    for text in ("[" * (MOST_BRACKETS - 1), "," * (MOST_COMMAS - 3)):
        body = json.dumps({"model": NAME, "prompt": text}).encode()
        assert CompletionRequest.model_validate(read_json(body)).prompt == text
        with pytest.raises(Exception, match=r"wanted [0-9,]+ at most") as caught:
            read_json(body.replace(text.encode(), text.encode() + 2 * text[:1].encode()))
        assert caught.value.status_code == 413


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_an_encoding_hides_nothing(encoding: str) -> None:
    assert read_json('{"a": "é", "a": [1]}'.encode(encoding)) == {"a": [1]}
    with pytest.raises(Exception, match="wanted 65,536"):
        read_json(("[" * (MOST_BRACKETS + 1)).encode(encoding))


async def order_of_answers(service: Service, client: httpx.AsyncClient, long: dict, short: dict) -> list[str]:
    """How the requests end whose long text waits for another one's turn, of which there is one."""
    ended = list[str]()

    async def ask(name: str, path: str, body: dict) -> None:
        found = await client.post(path, json={"model": NAME, "max_tokens": 1} | body)
        ended.append(f"{name} {found.status_code}")

    async with service.long_texts:
        waiting = asyncio.create_task(ask("long", CHAT if "messages" in long else TEXT, long))
        async with asyncio.timeout(10):
            while not service.long_texts.statistics().tasks_waiting:
                await asyncio.sleep(0.01)
        await ask("short", CHAT if "messages" in short else TEXT, short)
    await waiting
    return ended


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ({"prompt": "a" * (LONG_TEXT + 1)}, {"prompt": "a" * 10}),
        ({"prompt": ["a" * LONG_TEXT, "a"]}, {"prompt": [1] * 10}),
        ({"messages": [MESSAGE | {"content": "a" * LONG_TEXT}, MESSAGE]}, {"messages": [MESSAGE] * 10}),
    ],
    ids=["prompt", "prompts", "messages"],
)
def test_who_sends_long_texts_waits_for_their_turn_and_others_do_not(server: Running, long: dict, short: dict) -> None:
    async def asked() -> list[str]:
        service = replace(server.service, long_texts=CapacityLimiter(1))
        transport = httpx.ASGITransport(build_app(service, hosts=None))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await order_of_answers(service, client, long, short)

    assert asyncio.run(asked()) == ["short 200", "long 400"]


def test_nothing_that_was_loaded_is_looked_through_while_answers_are_made(composite: Composite) -> None:
    class Ready(Exception):  # noqa: N818 - reads as what happened
        pass

    loaded, seen = [object()], list[bool]()

    def ready(line: str) -> None:
        seen.append(any(each is loaded for each in gc.get_objects()))
        raise Ready

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert any(each is loaded for each in gc.get_objects())
        settings = ServerSettings(host="127.0.0.1", port=0, name=NAME, max_batch=1, queue=1, threads=1)
        with pytest.raises(Ready):
            serve(composite, settings, ready=ready)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [False]
