"""What OpenAI's own client and those written for it send along: earlier answers as they came, and defaults."""

import asyncio
import json

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from motet.serving.api.schemas import ChatRequest, CompletionRequest

from .conftest import NAME, Running

GREEDY = {"model": NAME, "temperature": 0.0, "max_tokens": 8}
ASKED = [{"role": "user", "content": "Hi"}]
PROMPT = "a prompt of a few words"


def status_and_message(server: Running, body: dict, *, path: str = "/v1/chat/completions") -> tuple[int, str]:
    content, headers = json.dumps(GREEDY | {"max_tokens": 1} | body), {"content-type": "application/json"}
    found = httpx.post(f"{server.url}{path}", content=content, headers=headers, timeout=60)
    return found.status_code, "" if found.status_code == 200 else found.json()["error"]["message"]


@pytest.mark.parametrize("as_told", [lambda message: message, lambda message: message.model_dump()])
def test_a_conversation_goes_on_with_the_clients_own_messages(client: OpenAI, as_told) -> None:
    messages: list = [*ASKED]
    plain = [*ASKED]
    for turn in ("and then?", "and after that?", "why?"):
        said = client.chat.completions.create(messages=messages, **GREEDY).choices[0].message
        assert said.content == client.chat.completions.create(messages=plain, **GREEDY).choices[0].message.content
        messages += [as_told(said), {"role": "user", "content": turn}]
        plain += [{"role": "assistant", "content": said.content}, {"role": "user", "content": turn}]


NEUTRAL = [
    *({"tools": None}, {"tools": []}, {"tool_choice": None}, {"tool_choice": "none"}, {"tool_choice": "auto"}),
    *({"parallel_tool_calls": True}, {"functions": []}, {"function_call": "none"}, {"web_search_options": None}),
    *({"response_format": {"type": "text"}}, {"response_format": None}, {"modalities": ["text"]}, {"audio": None}),
    *({"logit_bias": None}, {"logit_bias": {}}, {"frequency_penalty": 0.0}, {"presence_penalty": 0.0}),
    *({"store": False}, {"store": None}, {"metadata": None}, {"service_tier": "auto"}, {"service_tier": None}),
    *({"user": "somebody"}, {"safety_identifier": "x"}, {"prompt_cache_key": "x"}, {"reasoning_effort": None}),
    *({"attribution": None}, {"stream_options": None}, {"stop": []}, {"logprobs": False, "top_logprobs": 0}),
    {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": False}},
]
NEUTRAL_COMPLETION = [{"suffix": None}, {"logit_bias": {}}, {"best_of": 1}, {"echo": False}, {"frequency_penalty": 0.0}]


@pytest.mark.parametrize("asked", NEUTRAL, ids=str)
def test_values_that_ask_for_nothing_are_taken(asked: dict) -> None:
    ChatRequest.model_validate(GREEDY | {"messages": ASKED} | asked)


@pytest.mark.parametrize("asked", NEUTRAL_COMPLETION, ids=str)
def test_values_that_ask_for_nothing_are_taken_with_a_prompt(asked: dict) -> None:
    CompletionRequest.model_validate(GREEDY | {"prompt": "x"} | asked)


def test_all_that_asks_for_nothing_may_be_sent_at_once(server: Running) -> None:
    every = {name: value for each in NEUTRAL for name, value in each.items()}
    assert status_and_message(server, {"messages": ASKED} | every) == (200, "")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools are not called here"),
        ({"tool_choice": "required"}, "tools are not called here"),
        ({"response_format": {"type": "json_object"}}, "no form is forced on an answer"),
        ({"logit_bias": {"5": 10}}, "logit_bias: saw {'5': 10}, wanted {}"),
        ({"frequency_penalty": 0.5}, "frequency_penalty: saw 0.5, wanted 0"),
        ({"frequency_penalty": False}, "frequency_penalty: saw False, wanted 0"),
        ({"store": True}, "answers are not stored here"),
        ({"store": 0}, "store: saw 0, wanted False"),
        ({"service_tier": "flex"}, "all requests are served alike"),
        ({"modalities": ["text", "audio"]}, "answers are text alone"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "streams are not padded"),
        ({"metadata": {"x": "y" * 100_000}}, "metadata: saw"),
        ({"tool_choice": "\ud800"}, "tool_choice: saw '\\ud800'"),
    ],
)
def test_what_would_change_an_answer_is_refused_with_the_reason(server: Running, asked: dict, said: str) -> None:
    status, told = status_and_message(server, {"messages": ASKED} | asked)
    assert (status, said in told, len(told) < 300) == (400, True, True), told


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"name": "bob"}, "messages.0.name: saw 'bob', wanted none: chat templates tell a model roles, not names"),
        ({"tool_calls": [{"id": "1"}]}, "tools are not called here"),
        ({"refusal": "no"}, "models read text alone"),
        ({"content": None}, "messages.0.content: saw neither text nor a list of parts"),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "saw a part of type 'image_url', wanted 'text'",
        ),
        ({"content": [{"type": "refusal", "refusal": "x"}]}, "saw a part of type 'refusal'"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text"}]}, "messages.0.content.1.text"),
        ({"content": ["a"]}, "messages.0.content.0"),
    ],
)
def test_messages_that_say_more_than_text_are_refused_with_the_reason(
    server: Running, message: dict, said: str
) -> None:
    status, told = status_and_message(server, {"messages": [{"role": "assistant", "content": "x"} | message]})
    assert (status, said in told) == (400, True), told


def test_parts_of_text_are_one_text(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "a prompt "}, {"type": "text", "text": "of words"}]
    split, whole = (
        client.chat.completions.create(messages=[{"role": "user", "content": each}], **GREEDY)
        for each in (parts, "a prompt of words")
    )
    assert split.choices[0].message.content == whole.choices[0].message.content
    assert split.usage.prompt_tokens == whole.usage.prompt_tokens


@pytest.mark.parametrize("body", [{"\ud800": 1}, {"experts": {"include": ["\ud800"]}}, {"stop": ["\ud800"]}])
def test_half_a_surrogate_pair_is_refused_wherever_it_is(server: Running, body: dict) -> None:
    status, told = status_and_message(server, {"prompt": "x"} | body, path="/v1/completions")
    assert (status, bool(told)) == (400, True)


def test_asynchronous_streams_at_once_are_each_as_the_whole_answer(server: Running, client: OpenAI) -> None:
    prompts = [PROMPT[: 5 + number] for number in range(4)]
    whole = [client.completions.create(prompt=prompt, **GREEDY).choices[0].text for prompt in prompts]
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    spoken = [client.chat.completions.create(messages=each, **GREEDY).choices[0].message.content for each in messages]

    async def streamed(connected: AsyncOpenAI, prompt: str) -> str:
        stream = await connected.completions.create(prompt=prompt, stream=True, **GREEDY)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def chatted(connected: AsyncOpenAI, asked: list) -> str:
        stream = await connected.chat.completions.create(messages=asked, stream=True, **GREEDY)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as connected:
            asked = [streamed(connected, prompt) for prompt in prompts]
            return await asyncio.gather(*asked, *(chatted(connected, each) for each in messages))

    assert asyncio.run(all_of_them()) == whole + spoken


def test_several_answers_of_a_conversation_streamed_with_log_probabilities_and_usage(client: OpenAI) -> None:
    how = {"model": NAME, "max_tokens": 10, "temperature": 1.0, "seed": 4, "n": 2}
    asked = {"messages": ASKED, "logprobs": True, "top_logprobs": 2} | how
    whole = client.chat.completions.create(**asked)
    *chunks, last = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked)
    assert (last.choices, last.usage.completion_tokens, last.usage.prompt_tokens) == (
        [],
        whole.usage.completion_tokens,
        whole.usage.prompt_tokens,
    )
    for number, choice in enumerate(whole.choices):
        pieces = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == number]
        assert "".join(piece.delta.content or "" for piece in pieces) == choice.message.content
        assert pieces[0].delta.role == "assistant"
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [choice.finish_reason]
        told = [each for piece in pieces if piece.logprobs for each in piece.logprobs.content]
        assert [(each.token, each.bytes, len(each.top_logprobs)) for each in told] == [
            (each.token, each.bytes, 2) for each in choice.logprobs.content
        ]
        assert [each.logprob for each in told] == pytest.approx(
            [each.logprob for each in choice.logprobs.content], abs=1e-4
        )
