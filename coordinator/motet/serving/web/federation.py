"""The federation's page: who is there, how training and uploads go, what was decided and why, what was measured.

add_federation(app, Observer(home))            # GET /federation, and its parts below it
"""

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from motet.serving.api.errors import Refusal
from motet.serving.web.observing import Observer
from motet.serving.web.pages import page
from motet.serving.web.visitors import access_of


def add_federation(app: FastAPI, observer: Observer) -> None:
    """Add the page; with `?live=off` it stands still."""
    service = app.state.service

    async def refused(request: Request) -> Response | None:
        try:
            await access_of(request)
        except Refusal as refusal:
            return page(
                "key.html",
                status=refusal.status,
                headers=refusal.headers,
                service=service,
                problem=refusal,
                federation=True,
            )
        return None

    @app.get("/federation", include_in_schema=False)
    async def federation(request: Request) -> Response:
        if (refusal := await refused(request)) is not None:
            return refusal
        scene, measured = await run_in_threadpool(lambda: (observer.now(), observer.measured()))
        live = request.query_params.get("live") != "off"
        return page(
            "federation.html",
            service=service,
            charter=observer.charter,
            scene=scene,
            measured=measured,
            live=live,
            federation=True,
        )

    @app.get("/federation/now", include_in_schema=False)
    async def now(request: Request) -> Response:
        if (refusal := await refused(request)) is not None:
            return refusal
        return page("now.html", scene=await run_in_threadpool(observer.now))

    @app.get("/federation/measured", include_in_schema=False)
    async def measured(request: Request) -> Response:
        if (refusal := await refused(request)) is not None:
            return refusal
        return page("measured.html", measured=await run_in_threadpool(observer.measured))
