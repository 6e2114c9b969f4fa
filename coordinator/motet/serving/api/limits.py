"""What stands in front of every endpoint: a limit to the size of bodies, and the count of answers.

app.add_middleware(Door, metrics=metrics, most=4 << 20)
"""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from motet.serving.api.errors import refused
from motet.serving.api.metrics import Metrics

MOST_BYTES = 4 << 20


def _too_large(most: int) -> HTTPException:
    """Of a kind that FastAPI lets through when it comes up while a body is read."""
    said = f"saw a body of more than {most:,} bytes, wanted at most that; send a shorter prompt"
    return HTTPException(413, said, headers={"Connection": "close"})


class Door:
    """Refuses bodies of more than `most` bytes, whatever their headers say, before they are in memory."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, most: int = MOST_BYTES) -> None:
        self._app, self._metrics, self._most = app, metrics, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen, status = 0, 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise _too_large(self._most)
            return message

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if _declared(scope) > self._most:
                await refused(_too_large(self._most)).response()(scope, receive, told)
            else:
                await self._app(scope, counted, told)
        finally:
            route = scope.get("route")
            self._metrics.answered(getattr(route, "path", "other"), status)


def _declared(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
