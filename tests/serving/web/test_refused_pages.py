"""What a page says when it cannot answer now, or not to the end."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import httpx
import pytest
from starlette.requests import HTTPConnection

from motet.protocols.errors import StorageError
from motet.serving.api.app import build_app
from motet.serving.api.errors import Refusal
from motet.serving.engine.job import FinishReason, Step, Token
from motet.serving.hooks import Access, Hooks
from motet.serving.web import mount
from motet.serving.web.comparing import Side, told
from motet.serving.web.live import MEDIA_TYPE
from motet.serving.web.pages import rendered

from .watched import Site, Watched


def unrecorded(under_way: Sequence[int]) -> None:
    raise StorageError("no space left on device")


def busy(request: HTTPConnection) -> Access:
    raise Refusal("saw too many at once, wanted fewer; wait", status=429, code="busy", headers={"Retry-After": "5"})


@pytest.mark.parametrize(
    ("hooks", "status", "method", "path", "accept"),
    [
        (Hooks(ready=unrecorded), 503, "POST", "/", "text/html"),
        (Hooks(ready=unrecorded), 503, "POST", "/", MEDIA_TYPE),
        (Hooks(authorise=busy), 429, "GET", "/", "text/html"),
        (Hooks(authorise=busy), 429, "POST", "/", "text/html"),
        (Hooks(authorise=busy), 429, "POST", "/", MEDIA_TYPE),
        (Hooks(authorise=busy), 429, "POST", "/key", "text/html"),
        (Hooks(authorise=busy), 429, "GET", "/federation", "text/html"),
    ],
    ids=range(7),
)
def test_a_page_that_cannot_be_had_now_says_when(
    pages: Site, scene: Watched, hooks: Hooks, status: int, method: str, path: str, accept: str
) -> None:
    async def asked() -> httpx.Response:
        app = build_app(replace(pages.service, hooks=hooks), hosts=None)
        mount(app, home=scene.home.path)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            form = {"prompt": "the", "tokens": "2", "key": "k"} if method == "POST" else None
            return await client.request(method, path, data=form, headers={"Accept": accept})

    found = asyncio.run(asked())
    assert (found.status_code, found.headers["retry-after"]) == (status, "5")
    assert found.headers["cache-control"] == "no-store"
    assert "alert" in found.text


@pytest.mark.parametrize(
    ("finish", "said"),
    [
        ("stop", "ended by the model"),
        ("length", "as many as were asked for"),
        ("expert_withdrawn", "ended because an expert was withdrawn"),
        ("cancelled", "ended because the server is being stopped"),
    ],
)
def test_an_answer_says_why_it_ended(pages: Site, finish: FinishReason, said: str) -> None:
    roster = pages.service.composite.roster
    token = Token(id=3, text="the", shares=(1.0, *[0.0] * (len(roster.names) - 1)))
    side = Side(title="With every expert", experts=roster.every())
    shown = told(side, [Step(sample=0, token=token, text="the", finish=finish)], roster.names)
    assert f"1 tokens, {said}." in rendered("compared.html", answers=[shown], problem=None)
