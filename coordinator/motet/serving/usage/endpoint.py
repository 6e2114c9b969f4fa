"""/v1/usage: what a key's tenant has used.

app.include_router(usage_router(service, store))
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from motet.serving.api.errors import Refusal
from motet.serving.api.service import Service
from motet.serving.usage.shares import MICROTOKENS
from motet.serving.usage.statement import NOTICE, moment
from motet.serving.usage.store import ExpertUsage, Period, Total, UsageStore

_Seconds = Annotated[int | None, Query(ge=0, le=1 << 40, description="Seconds since the epoch.")]


def usage_router(service: Service, store: UsageStore) -> APIRouter:
    """The endpoint, for an application with this service."""
    router = APIRouter()

    @router.get("/v1/usage", tags=["listings"])
    async def usage(request: Request, since: _Seconds = None, until: _Seconds = None) -> dict[str, Any]:
        """What the tenant of this key has used: gate mass, in generated tokens, by expert."""
        access = await service.access(request)
        period = Period(since=(since or 0) * 1000, until=Period().until if until is None else until * 1000)
        if period.since > period.until:
            raise Refusal(f"saw since = {since} after until = {until}, wanted it before", param="since")
        total = await run_in_threadpool(lambda: store.total(period, tenant=access.tenant))
        return {"tenant": access.tenant} | usage_json(total)

    return router


def usage_json(total: Total) -> dict[str, Any]:
    """A period's usage as a JSON object."""
    until = None if total.period.until == Period().until else moment(total.period.until)
    return {
        "object": "usage",
        "since": moment(total.period.since),
        "until": until,
        "answers": total.answers,
        "prompt_tokens": total.prompt_tokens,
        "generated_tokens": total.generated_tokens,
        "experts": [_expert_json(each, total) for each in total.experts],
        "notice": NOTICE,
    }


def _expert_json(usage: ExpertUsage, total: Total) -> dict[str, Any]:
    return {
        "name": usage.expert.name,
        "contribution": usage.expert.contribution,
        "owner": usage.expert.owner,
        "answers": usage.answers,
        "generated_tokens": usage.generated_tokens,
        "microtokens": usage.microtokens,
        "share": share_of(usage, total),
    }


def share_of(usage: ExpertUsage, total: Total) -> float:
    """Of the gate mass of all generated tokens of the period."""
    return usage.microtokens / (total.generated_tokens * MICROTOKENS) if total.generated_tokens else 0.0
