"""Prompts that are read: who waits how many passes, and whose beginnings are used again."""

import httpx

from motet.serving.engine.loading import Composite
from motet.serving.hooks import Access, Hooks

from .batches import alone, batch_of, begin, finish, prompts
from .conftest import NAME, running

SECRET = "patient record, confidential: john miller"


def passes_until_told(batch, heard) -> int:
    for passes in range(1, 100):
        batch.step()
        if heard.steps:
            return passes
    raise AssertionError("nobody was told")


def test_a_huge_prompt_does_not_hold_up_the_first_tokens_of_short_ones(composite: Composite) -> None:
    batch, every = batch_of(composite, chunk=16), composite.roster.every()
    huge = begin(batch, (5,) * 160, every, max_tokens=1)
    batch.step()
    short = begin(batch, (6, 7, 8), every, max_tokens=1)
    assert passes_until_told(batch, short) == 1
    assert not huge.steps


def test_a_huge_prompt_is_read_however_many_short_ones_come(composite: Composite) -> None:
    batch, every = batch_of(composite, chunk=16), composite.roster.every()
    prompt = prompts(1, 64)[0]
    huge = begin(batch, prompt, every, max_tokens=4)
    for _ in range(64 // (16 // 4)):
        begin(batch, (6,) * 16, every, max_tokens=1)
        batch.step()
    assert huge.steps
    finish(batch)
    assert huge.tokens() == alone(composite, prompt, every, 4)


def test_prompts_of_one_length_are_read_one_after_the_other(composite: Composite) -> None:
    batch, every = batch_of(composite, chunk=16), composite.roster.every()
    told = [begin(batch, prompt, every, max_tokens=1) for prompt in [(5,) * 16, (6,) * 16, (7,) * 16]]
    for expected in (1, 2, 3):
        batch.step()
        assert sum(bool(each.steps) for each in told) == expected


def test_beginnings_are_used_again_by_the_same_tenant_alone(composite: Composite) -> None:
    """How many tokens were known already would tell others, token by token, what somebody had asked."""

    def by_key(records: list) -> Hooks:
        return Hooks(authorise=lambda request: Access(tenant=request.headers.get("authorization")))

    def known(server, tenant: str | None, prompt: str) -> int:
        body = {"model": NAME, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        headers = {} if tenant is None else {"authorization": tenant}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60).json()
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    with running(composite, hooks=by_key) as server:
        assert known(server, "alice", SECRET) == 0
        assert [known(server, tenant, SECRET) for tenant in ("mallory", None)] == [0, 0]
        assert [known(server, tenant, SECRET) for tenant in ("alice", "mallory", None)] == [len(SECRET) - 1] * 3


def test_more_prompts_than_may_ever_wait_are_refused_for_good(composite: Composite) -> None:
    with running(composite, max_batch=2, queue=8) as server:
        body = {"model": NAME, "prompt": ["x"] * 9, "max_tokens": 1}
        found = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert found.status_code == 400
        assert "saw 9 prompts, wanted 8 at most" in found.json()["error"]["message"]
        found = httpx.post(f"{server.url}/v1/completions", json=body | {"prompt": ["x"] * 8}, timeout=60)
        assert [choice["finish_reason"] for choice in found.json()["choices"]] == ["length"] * 8
