"""Sending an answer, whole or as server-sent events, and noticing that a client has gone.

Guarantees: when the connection ends, the answer's places are freed, whether it was streamed or not.

    return await sent(request, form, stream=body.stream, usage=True)
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from motet.serving.api.errors import refusal_of
from motet.serving.api.forms import Form

GONE = 499
"""What a status is called that nobody reads (nginx: client closed request)."""


async def sent(request: Request, form: Form, *, stream: bool, usage: bool) -> Response:
    """The answer. Raises as `Answer.steps`, unless it is a stream, which then ends with an error."""
    if stream:
        return _EventStream(form, usage)
    working = asyncio.ensure_future(form.answer.whole())
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return Response(status_code=GONE)
        working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait((working, leaving))
        await form.answer.leave()
    return JSONResponse(await run_in_threadpool(form.whole))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(form: Form, usage: bool) -> AsyncIterator[bytes]:
    beside: dict[str, Any] = {"usage": None} if usage else {}  # as OpenAI's, which tells it in every chunk
    for opening in form.opening():
        yield _event(opening | beside)
    try:
        async for number, step in form.answer.steps():
            yield _event(form.chunk(number, step) | beside)
    except Exception as error:
        yield _event(refusal_of(error).as_json())
        return
    if usage:
        yield _event(form.usage())
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class _EventStream(StreamingResponse):
    """A stream whose answer is left when the connection ends, not when the source is collected as garbage."""

    def __init__(self, form: Form, usage: bool) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_events(form, usage), media_type="text/event-stream", headers=headers)
        self._answer = form.answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answer.leave()
