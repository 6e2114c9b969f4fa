"""/v1/usage: what a key's tenant has used.

app.include_router(usage_router(service, store, server=key.public))
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from motet.serving.api.described import UsageAnswer, answers_with
from motet.serving.api.errors import Refusal
from motet.serving.api.keyed import granted, keyed_router
from motet.serving.api.service import Service
from motet.serving.usage.figures import usage_json
from motet.serving.usage.store import Period, UsageStore

_Seconds = Annotated[int | None, Query(ge=0, le=1 << 40, description="Seconds since the epoch.")]


def usage_router(service: Service, store: UsageStore, *, server: str) -> APIRouter:
    """The endpoint, for an application with this service; `server` is the public key that signs its statements."""
    router = keyed_router(service)

    @router.get("/v1/usage", tags=["listings"], response_model=None, responses=answers_with(UsageAnswer))
    async def usage(request: Request, since: _Seconds = None, until: _Seconds = None) -> dict[str, Any]:
        """What the tenant of this key has used: gate mass, in generated tokens, by expert."""
        access = granted(request)
        period = Period(since=(since or 0) * 1000, until=Period().until if until is None else until * 1000)
        if period.since > period.until:
            raise Refusal(f"saw since = {since} after until = {until}, wanted it before", param="since")
        total = await run_in_threadpool(lambda: store.total(period, tenant=access.tenant))
        return {"tenant": access.tenant, "server": server} | usage_json(total)

    return router
