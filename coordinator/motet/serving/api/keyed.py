"""The key before the body: nothing of a request is read or parsed before it is known whom it is from.

Guarantees: of an endpoint on such a router, whoever may not come in learns nothing but that, however the request looks,
unless its body says that it is larger than any may be (`limits`). Bodies are measured while they are read (`bodies`).

    router = keyed_router(service)
    @router.get("/v1/models")
    async def models(request: Request) -> ...: access = granted(request)
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from motet.serving.api.bodies import MeasuredRequest
from motet.serving.api.service import Service
from motet.serving.hooks import Access

KEY = HTTPBearer(auto_error=False, description="A key that `motet api-key new` has made.")
"""How the API's description says that a key is sent; who has a good one, the service's hook decides."""


class KeyedRoute(APIRoute):
    """A route whose requests are let in, or refused, by their headers alone."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint behind its door."""
        handle = super().get_route_handler()

        async def keyed(request: Request) -> Response:
            request.state.access = await request.app.state.service.access(request)
            return await handle(MeasuredRequest(request.scope, request.receive))

        return keyed


def keyed_router(service: Service) -> APIRouter:
    """A router for endpoints that want a key where the service's hooks do."""
    return APIRouter(route_class=KeyedRoute, dependencies=[Security(KEY)] if service.hooks.keyed else [])


def granted(request: Request) -> Access:
    """What a request that has come in may do."""
    access: Access = request.state.access
    return access
