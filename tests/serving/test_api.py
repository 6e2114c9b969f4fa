"""The endpoints, through OpenAI's own client: whole and streamed, and what stands beside the answers."""

import asyncio
import json
import re

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from motet.serving.engine.loading import Composite

from .conftest import NAME, Running

PROMPT = "a prompt of a few words"
GREEDY = {"model": NAME, "temperature": 0.0, "max_tokens": 12}


def reference(composite: Composite, prompt: str, tokens: int, experts: list[str]) -> str:
    """What transformers' generate makes of it with the same experts."""
    import torch

    ids = torch.tensor([composite.tokenizer.encode(prompt)])
    made = composite.model.generate(ids, expert_sets=[experts], max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return composite.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_completion_is_what_generate_makes_of_the_same_experts(client: OpenAI, composite: Composite) -> None:
    found = client.completions.create(prompt=PROMPT, **GREEDY)
    every = composite.roster.every()
    assert found.choices[0].text == reference(composite, PROMPT, 12, list(every.names))
    assert found.model_extra["experts_used"] == ["anchor", "art", "law", "math", "news", "verse"]
    assert found.model_extra["expert_set"] == every.digest
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(PROMPT), 12)


@pytest.mark.parametrize(
    "asked",
    [
        {"extra_body": {"experts": {"exclude": ["law", "art"]}}},
        {"extra_body": {"experts": {"include": ["verse", "math", "news"]}}},
        {"model": f"{NAME}:-law,-art"},
        {"model": f"{NAME}:+math,+news,+verse"},
    ],
)
def test_experts_are_switched_in_the_body_or_in_the_models_name(client: OpenAI, composite: Composite, asked) -> None:
    found = client.completions.create(prompt=PROMPT, **GREEDY | asked)
    assert found.model_extra["experts_used"] == ["anchor", "math", "news", "verse"]
    assert found.model_extra["expert_set"] == composite.roster.choose(exclude=["art", "law"]).digest
    assert found.choices[0].text == reference(composite, PROMPT, 12, ["math", "news", "verse"])


def test_a_stream_says_the_same_in_pieces(client: OpenAI) -> None:
    whole = client.completions.create(prompt=PROMPT, **GREEDY)
    stream = client.completions.create(prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **GREEDY)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    assert all(chunk.model_extra["experts_used"] == whole.model_extra["experts_used"] for chunk in chunks)


def test_a_conversation_is_answered_whole_and_streamed(client: OpenAI, composite: Composite) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    whole = client.chat.completions.create(messages=messages, **GREEDY)
    said = whole.choices[0].message.content
    assert said == reference(composite, "system: Be brief.\nuser: Hi\nassistant:", 12, list(composite.roster.names))
    assert whole.choices[0].message.role == "assistant"
    chunks = list(client.chat.completions.create(messages=messages, stream=True, **GREEDY))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said


def test_many_at_once_are_each_answered_as_alone(server: Running, composite: Composite) -> None:
    closed = composite.roster.names[1:]

    async def ask(client: AsyncOpenAI, number: int) -> str:
        exclude = [name for bit, name in enumerate(closed) if number >> bit & 1]
        found = await client.completions.create(
            prompt=PROMPT[: 4 + number], extra_body={"experts": {"exclude": exclude}}, **GREEDY
        )
        return found.choices[0].text

    async def all_of_them() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(12)))

    together = asyncio.run(all_of_them())
    for number, said in enumerate(together):
        kept = [name for bit, name in enumerate(closed) if not number >> bit & 1]
        assert said == reference(composite, PROMPT[: 4 + number], 12, ["anchor", *kept])


def test_seeds_repeat_an_answer_whoever_shares_the_batch(client: OpenAI) -> None:
    how = {"model": NAME, "prompt": PROMPT, "max_tokens": 10, "temperature": 1.3, "top_p": 0.9}
    alone = client.completions.create(seed=5, **how).choices[0].text
    three = [choice.text for choice in client.completions.create(seed=4, n=3, **how).choices]
    assert three[1] == alone
    assert len(set(three)) == 3
    assert client.completions.create(seed=6, **how).choices[0].text == three[2]


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(client: OpenAI) -> None:
    whole = client.completions.create(prompt=PROMPT, **GREEDY).choices[0].text
    ending = whole[4:6]
    found = client.completions.create(prompt=PROMPT, stop=["never seen", ending], **GREEDY).choices[0]
    assert found.text == whole[: whole.index(ending)]
    assert found.finish_reason == "stop"
    stream = client.completions.create(prompt=PROMPT, stop=ending, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in stream) == found.text


def test_log_probabilities_are_the_models(client: OpenAI, composite: Composite) -> None:
    import torch

    found = client.completions.create(prompt=PROMPT, logprobs=2, **GREEDY).choices[0].logprobs
    with torch.no_grad():
        logits = composite.model(torch.tensor([composite.tokenizer.encode(PROMPT)])).logits[0, -1]
    expected = logits.log_softmax(-1)
    assert found.token_logprobs[0] == pytest.approx(float(expected.max()), abs=1e-4)
    assert len(found.tokens) == len(found.top_logprobs) == 12
    chat = client.chat.completions.create(
        messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=3, **GREEDY
    )
    content = chat.choices[0].logprobs.content
    assert len(content) == 12
    assert content[0].top_logprobs[0].logprob == pytest.approx(content[0].logprob)
    assert len(content[0].top_logprobs) == 3


def test_several_prompts_and_token_ids(client: OpenAI, composite: Composite) -> None:
    texts = [PROMPT, "another"]
    found = client.completions.create(prompt=texts, n=2, **GREEDY).choices
    assert [choice.index for choice in found] == [0, 1, 2, 3]
    assert found[0].text == found[1].text != found[2].text
    ids = client.completions.create(prompt=[composite.tokenizer.encode(text) for text in texts], **GREEDY).choices
    assert [choice.text for choice in ids] == [found[0].text, found[2].text]
    assert (
        client.completions.create(prompt=composite.tokenizer.encode(PROMPT), **GREEDY).choices[0].text == found[0].text
    )


def test_attribution_tells_each_tokens_shares_and_the_meter_had_them_first(client: OpenAI, server: Running) -> None:
    found = client.completions.create(
        prompt=PROMPT, extra_body={"attribution": True, "experts": {"exclude": ["news"]}}, **GREEDY
    )
    told = found.choices[0].model_extra["attribution"]
    assert len(told["tokens"]) == 12
    for token in told["tokens"]:
        assert sum(token["shares"].values()) == pytest.approx(1, abs=1e-5)
        assert "news" not in token["shares"]
    assert sum(told["mass"].values()) == pytest.approx(12, abs=1e-4)
    record = next(each for each in server.records if each.id == found.id)
    assert record.mass() == pytest.approx(told["mass"] | {"news": 0.0}, abs=1e-5)
    assert (record.prompt_tokens, record.generated_tokens) == (len(PROMPT), 12)
    assert record.expert_set == found.model_extra["expert_set"]


def test_the_listings(client: OpenAI, server: Running) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    told = httpx.get(f"{server.url}/v1/experts").json()
    kinds = {each["id"]: (each["kind"], each["rank"], each["usable"]) for each in told["data"]}
    assert kinds["law"] == ("full", None, True)
    assert kinds["math"] == ("lowrank", 4, True)
    assert kinds["anchor"][0] == "anchor"
    assert told["default"]["expert_set"] == server.service.composite.roster.every().digest
    assert httpx.get(f"{server.url}/healthz").json()["status"] == "ok"
    described = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/experts", "/healthz", "/metrics"} <= described.keys()


def test_metrics_count_what_was_used(client: OpenAI, server: Running) -> None:
    client.completions.create(prompt=PROMPT, **GREEDY)
    told = httpx.get(f"{server.url}/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in told.splitlines() if not line.startswith("#"))
    assert float(lines['motet_requests_total{path="/v1/completions",status="200"}']) >= 1
    generated = sum(float(value) for name, value in lines.items() if name.startswith("motet_generated_tokens_total"))
    mass = sum(float(value) for name, value in lines.items() if name.startswith("motet_gate_mass_tokens_total"))
    assert generated == pytest.approx(mass, abs=1e-3)


def test_passes_of_the_model_are_a_counter(client: OpenAI, server: Running) -> None:
    def passes() -> float:
        told = httpx.get(f"{server.url}/metrics").text
        assert "# TYPE motet_model_passes_total counter" in told
        return float(re.search(r"^motet_model_passes_total (.*)$", told, re.MULTILINE)[1])

    before = passes()
    client.completions.create(prompt=PROMPT, **GREEDY)
    assert before < passes() <= server.engine.load().passes


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("counted", [False, True])
def test_every_event_has_a_place_for_usage_where_it_is_asked_for(server: Running, path: str, counted: bool) -> None:
    asked = {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}
    options = {"stream_options": {"include_usage": True}} if counted else {}
    body = GREEDY | asked | options | {"model": NAME, "stream": True, "max_tokens": 3}
    lines = httpx.post(f"{server.url}{path}", json=body, timeout=60).text.split("\n\n")
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    if counted:
        assert [each["usage"] for each in told[:-1]] == [None] * (len(told) - 1)
        assert told[-1]["usage"]["completion_tokens"] == 3
    else:
        assert not any("usage" in each for each in told)
