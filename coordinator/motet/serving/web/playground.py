"""The playground: a prompt, a switch for each expert, and two answers side by side, with and without.

add_playground(app, federation=False)          # GET / and POST /, GET /key and POST /key
"""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from motet.protocols.documents import first_problem
from motet.protocols.errors import MotetError
from motet.serving.api.answer import Answer
from motet.serving.api.errors import Refusal, refusal_of
from motet.serving.api.prompts import conversation_ids, token_ids
from motet.serving.api.responses import GONE
from motet.serving.api.schemas import ChatRequest, CompletionRequest
from motet.serving.api.service import Service
from motet.serving.engine.job import Job
from motet.serving.hooks import Access
from motet.serving.web.comparing import Side, Told, pair_of, spoken, told
from motet.serving.web.live import MEDIA_TYPE, LiveAnswers, columns
from motet.serving.web.pages import HEADERS, page
from motet.serving.web.visitors import access_of, form_of, keep_key, require_own_page

ENDPOINT = "/"
"""What records and counters call it."""
TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the form holds.

    on: the experts that are switched on; None for all.
    tokens, temperature, seed: as they were typed, judged by the rules of the API.
    conversation: whether the prompt is put into the model's template.
    """

    prompt: str = ""
    on: tuple[str, ...] | None = None
    tokens: str = str(TOKENS)
    temperature: str = "0"
    seed: str = "0"
    conversation: bool = False

    @classmethod
    def of(cls, form: Mapping[str, Sequence[str]]) -> "Question":
        """From the fields of a form. A switch that is off is not among them."""
        typed = {name: form[name][0] for name in ("prompt", "tokens", "temperature", "seed") if name in form}
        typed["prompt"] = typed.get("prompt", "").replace("\r\n", "\n")
        return cls(on=tuple(form.get("on", ())), conversation="conversation" in form, **typed)

    def body(self, model: str) -> CompletionRequest | ChatRequest:
        """The same as a request to the API. Raises Refusal."""
        given: dict[str, Any] = {"model": model, "max_tokens": _number(self.tokens), "seed": _number(self.seed)}
        given["temperature"] = _fraction(self.temperature)
        try:
            if self.conversation:
                messages = [{"role": "user", "content": self.prompt}]
                return ChatRequest.model_validate(given | {"messages": messages})
            return CompletionRequest.model_validate(given | {"prompt": self.prompt})
        except ValidationError as error:
            raise Refusal(f"saw a form that cannot be used: {first_problem(error)}; correct it") from error


def add_playground(app: FastAPI, *, federation: bool) -> None:
    """Add the page; `federation` says whether there is another page to go to."""
    playground = Playground(app.state.service, federation)
    app.add_api_route("/", playground.show, methods=["GET"], include_in_schema=False, response_model=None)
    app.add_api_route("/", playground.answer, methods=["POST"], include_in_schema=False, response_model=None)
    app.add_api_route("/key", playground.ask, methods=["GET"], include_in_schema=False, response_model=None)
    app.add_api_route("/key", playground.keep, methods=["POST"], include_in_schema=False, response_model=None)


@dataclass(frozen=True, slots=True, eq=False)
class Playground:
    """The page of one service; each method answers one kind of request."""

    service: Service
    federation: bool

    async def show(self, request: Request) -> Response:
        """The page before anything was asked, or the one that asks for a key."""
        try:
            return self._page(Question(conversation=_converses(self.service)), await access_of(request))
        except Refusal as refusal:
            return self._closed(refusal)

    async def answer(self, request: Request) -> Response:
        """Both answers: to a script while they are made, else as the whole page."""
        question, access, live = Question(), None, request.headers.get("accept") == MEDIA_TYPE
        try:
            require_own_page(request)
            access = await access_of(request)
            question = Question.of(await form_of(request))
            async with AsyncExitStack() as leaving:
                pairs = await begun(self.service, question, access, leaving)
                if live:
                    return LiveAnswers(pairs, self.service.composite.roster.names, leaving=leaving.pop_all())
                steps = await spoken(request, [answer for _, answer in pairs])
        except (MotetError, Refusal) as error:
            problem = refusal_of(error)
            if live:
                return Response(columns([], problem), problem.status, problem.headers | HEADERS, MEDIA_TYPE)
            if access is None:
                return self._closed(problem)
            return self._page(question, access, problem=problem)
        if steps is None:
            return Response(status_code=GONE)
        names = self.service.composite.roster.names
        answers = [told(side, each, names) for (side, _), each in zip(pairs, steps, strict=True)]
        return self._page(question, access, answers=answers)

    async def ask(self, request: Request) -> Response:
        """The page that takes a key or makes the browser forget one, for whoever may come in without as well."""
        return self._closed(None)

    async def keep(self, request: Request) -> Response:
        """Let the browser keep a key that is good, or forget the one it has."""
        try:
            require_own_page(request)
            key = (await form_of(request)).get("key", [""])[0].strip()
            response = RedirectResponse("/", status_code=303)
            keep_key(request, response, key)
            if key:
                await access_of(request, key=key)
        except Refusal as refusal:
            return self._closed(refusal)
        return response

    def _page(
        self, question: Question, access: Access, *, answers: Sequence[Told] = (), problem: Refusal | None = None
    ) -> Response:
        return page(
            "playground.html",
            **_head(problem),
            service=self.service,
            question=question,
            usable=self.service.usable(access),
            conversing=_converses(self.service),
            answers=answers,
            problem=problem,
            federation=self.federation,
        )

    def _closed(self, problem: Refusal | None) -> Response:
        return page("key.html", **_head(problem), service=self.service, problem=problem, federation=self.federation)


async def begun(
    service: Service, question: Question, access: Access, leaving: AsyncExitStack
) -> list[tuple[Side, Answer]]:
    """Both answers, under way, to be left by `leaving`. Raises Refusal, and MotetError as the engine does."""
    sides = pair_of(service.composite.roster, on=question.on or (), usable=service.usable(access))
    pairs = []
    jobs = await service.tokenised(partial(_jobs, service, question, sides), characters=len(question.prompt))
    for side, job in zip(sides, jobs, strict=True):
        answer = Answer(service, access, endpoint=ENDPOINT, jobs=[job])
        leaving.push_async_callback(answer.leave)
        pairs.append((side, answer))
    return pairs


def _jobs(service: Service, question: Question, sides: Sequence[Side]) -> list[Job]:
    body = question.body(service.name)
    if isinstance(body, ChatRequest):
        ids = conversation_ids(service.composite, body.messages, limit=body.max_tokens)
    else:
        ids = token_ids(service.composite, question.prompt, limit=body.max_tokens)[0]
    return [service.job(body, ids, side.experts, limit=body.max_tokens, logprobs=None) for side in sides]


def _head(problem: Refusal | None) -> dict[str, Any]:
    return {} if problem is None else {"status": problem.status, "headers": problem.headers}


def _converses(service: Service) -> bool:
    return bool(getattr(service.composite.tokenizer, "chat_template", None))


def _number(typed: str) -> int | str:
    return int(typed) if typed.strip().removeprefix("-").isdecimal() and len(typed) < 20 else typed


def _fraction(typed: str) -> float | str:
    try:
        return float(typed)
    except ValueError:
        return typed
