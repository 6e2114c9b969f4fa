"""The application: every endpoint of the server.

    app = build_app(Service(composite, engine, name="demo", hooks=hooks))
    uvicorn.run(app, host="127.0.0.1", port=8000)         # elsewhere: build_app(..., hosts=known_names("0.0.0.0"))

Others add routers of their own with `app.include_router`; `app.state.service` is the service.
"""

from collections.abc import Collection
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from motet.serving.api.answer import Answer
from motet.serving.api.described import (
    ERRORS,
    ChatAnswer,
    ChatChunk,
    CompletionAnswer,
    ExpertList,
    Health,
    ModelList,
    NamedModel,
    answers_with,
    describe_events,
)
from motet.serving.api.errors import install_errors
from motet.serving.api.forms import ChatForm, CompletionForm
from motet.serving.api.hosts import LOOPBACK, KnownHosts
from motet.serving.api.keyed import granted, keyed_router
from motet.serving.api.limits import Door
from motet.serving.api.listing import experts_listed, model_listed, named_model
from motet.serving.api.prompts import characters, conversation_ids, token_ids
from motet.serving.api.responses import sent
from motet.serving.api.schemas import ChatRequest, CompletionRequest
from motet.serving.api.service import Service

COMPLETION_TOKENS = 16
"""Generated at most by /v1/completions unless the request says otherwise, as OpenAI's does."""


def build_app(service: Service, *, hosts: Collection[str] | None = LOOPBACK) -> FastAPI:
    """The application for a service.

    Args:
        service: what answers; its engine must be running.
        hosts: the names that it is asked by, as `known_names` tells them; None for any.
    """
    app = FastAPI(
        title="Motet",
        version=version("motet"),
        description=_DESCRIPTION,
        responses=ERRORS,
        docs_url=None,  # FastAPI's own pages load scripts from a CDN: motet.serving.web has one that does not
        redoc_url=None,
    )
    app.state.service = service
    install_errors(app)
    app.add_middleware(KnownHosts, names=hosts)
    app.add_middleware(Door, metrics=service.metrics)
    app.include_router(_generation(service))
    app.include_router(_listings(service))
    _add_operation(app, service)
    describe_events(app)
    return app


def _generation(service: Service) -> APIRouter:
    router = keyed_router(service)

    @router.post(
        "/v1/completions",
        tags=["generation"],
        response_model=None,
        responses=answers_with(CompletionAnswer, events=CompletionAnswer),
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a prompt."""
        access = granted(request)
        chosen = service.named(body.model, access, experts=body.experts)
        limit = body.max_tokens or COMPLETION_TOKENS
        read = partial(token_ids, service.composite, body.prompt, limit=limit)
        prompts = await service.tokenised(read, characters=characters(body.prompt))
        jobs = [service.job(body, ids, chosen, limit=limit, logprobs=body.logprobs) for ids in prompts]
        answer = Answer(service, access, endpoint="/v1/completions", jobs=jobs)
        told = bool(body.attribution)
        form = CompletionForm(answer, model=body.model, logprobs=body.logprobs is not None, attribution=told)
        return await sent(request, form, stream=bool(body.stream), usage=body.counts)

    @router.post(
        "/v1/chat/completions",
        tags=["generation"],
        response_model=None,
        responses=answers_with(ChatAnswer, events=ChatChunk),
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        access = granted(request)
        chosen = service.named(body.model, access, experts=body.experts)
        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        read = partial(conversation_ids, service.composite, body.messages, limit=limit)
        ids = await service.tokenised(read, characters=sum(len(each.text) for each in body.messages))
        job = service.job(body, ids, chosen, limit=limit, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
        answer = Answer(service, access, endpoint="/v1/chat/completions", jobs=[job])
        told = bool(body.attribution)
        form = ChatForm(answer, model=body.model, logprobs=bool(body.logprobs), attribution=told)
        return await sent(request, form, stream=bool(body.stream), usage=body.counts)

    return router


def _listings(service: Service) -> APIRouter:
    router = keyed_router(service)

    @router.get("/v1/models", tags=["listings"], response_model=None, responses=answers_with(ModelList))
    async def models(request: Request) -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [model_listed(service)]}

    @router.get("/v1/models/{name:path}", tags=["listings"], response_model=None, responses=answers_with(NamedModel))
    async def model(name: str, request: Request) -> dict[str, Any]:
        """The model under its name, or with experts behind it, `NAME:-law`."""
        return named_model(service, granted(request), name)

    @router.get("/v1/experts", tags=["listings"], response_model=None, responses=answers_with(ExpertList))
    async def experts(request: Request) -> dict[str, Any]:
        """The experts, and which of them may be used with this key now."""
        return experts_listed(service, granted(request))

    return router


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operation"], responses=answers_with(Health))
    async def healthz() -> Response:
        """Whether the server takes requests, and how busy it is."""
        load, taking = service.engine.load(), service.engine.taking
        body = {"status": "ok" if taking else "stopping", "waiting": load.waiting, "running": load.running}
        return JSONResponse(body, status_code=200 if taking else 503)

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        text = service.metrics.exposition(service.engine.load())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


_DESCRIPTION = """OpenAI-compatible, with experts that each request switches on and off: `experts: {"exclude": [...]}`
or `{"include": [...]}` in the body, or `model: "NAME:-law,-news"`. Answers carry `experts_used` and `expert_set`."""
