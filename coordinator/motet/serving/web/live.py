"""The playground's answers while they are made, for its script: lines of JSON.

Guarantees: the last line holds everything, and was said only after what was used is on the books; when the reader
leaves, both answers free their places; what a model says is escaped as in the page.

    return LiveAnswers(pairs, names, leaving=leaving.pop_all())

    {"answers": "<div ...", "news": "..."}         the columns; first empty, at the end with shares and tables
    {"side": 0, "piece": "<span ...", }            the next token of a column
"""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from motet.serving.api.answer import Answer
from motet.serving.api.errors import Refusal, refusal_of
from motet.serving.engine.job import Step
from motet.serving.web.comparing import Side, Told, merged, piece_of, told
from motet.serving.web.pages import HEADERS, rendered

MEDIA_TYPE = "application/x-ndjson"


class LiveAnswers(StreamingResponse):
    """A stream whose answers are left when the connection ends, not when the source is collected as garbage."""

    def __init__(self, pairs: Sequence[tuple[Side, Answer]], names: Sequence[str], *, leaving: AsyncExitStack) -> None:
        lines = _lines(pairs, names)
        super().__init__(lines, media_type=MEDIA_TYPE, headers=HEADERS | {"X-Accel-Buffering": "no"})
        leaving.push_async_callback(lines.aclose)  # first: nobody takes steps of an answer that is left
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._leaving.aclose()


def columns(answers: Sequence[Told], problem: Refusal | None) -> bytes:
    """A line that shows these answers, or what the problem is."""
    ended = " ".join(f"{each.title}: {len(each.pieces)} tokens." for each in answers if each.finish)
    return _line(answers=rendered("compared.html", answers=answers, problem=problem), news=ended)


async def _lines(pairs: Sequence[tuple[Side, Answer]], names: Sequence[str]) -> AsyncGenerator[bytes]:
    steps: list[list[Step]] = [[] for _ in pairs]
    yield columns([told(side, [], names) for side, _ in pairs], None)
    problem = None
    try:
        async with aclosing(merged([answer for _, answer in pairs])) as news:
            async for number, step in news:
                steps[number].append(step)
                if step.text and step.token is not None:
                    yield _line(side=number, piece=rendered("piece.html", piece=piece_of(step.text, step.token, names)))
    except Exception as error:
        problem = refusal_of(error)
    shown = [] if problem else [told(side, each, names) for (side, _), each in zip(pairs, steps, strict=True)]
    yield columns(shown, problem)


def _line(**values: object) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"
