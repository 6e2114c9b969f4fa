"""What a visitor sends, read without holding up anybody else."""

import asyncio
import threading
from urllib.parse import parse_qs

import pytest
from starlette.requests import Request

from motet.serving.web import visitors


def request(body: bytes) -> Request:
    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_a_form_is_read_in_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    readers = list[threading.Thread]()

    def noted(*values, **settings) -> dict[str, list[str]]:
        readers.append(threading.current_thread())
        return parse_qs(*values, **settings)

    monkeypatch.setattr(visitors, "parse_qs", noted)
    found = asyncio.run(visitors.form_of(request(b"prompt=" + b"%c3%a9" * 1000 + b"&on=law&on=news&key=")))
    assert found == {"prompt": ["é" * 1000], "on": ["law", "news"], "key": [""]}
    assert readers
    assert threading.current_thread() not in readers


@pytest.mark.parametrize("body", [b"\xff", b"&" * 600])
def test_a_form_that_cannot_be_read_says_so(body: bytes) -> None:
    with pytest.raises(visitors.Refusal, match="a form that cannot be read"):
        asyncio.run(visitors.form_of(request(body)))
