"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}` with a fitting status.

raise Refusal("saw no key, wanted Authorization: Bearer ...", status=401, code="invalid_api_key")
install_errors(app)                      # MotetError, malformed bodies and whatever else was raised, in this shape
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from motet.protocols.errors import ExpertSetError, MotetError, StorageError
from motet.serving.api.schemas import FORMS
from motet.serving.engine.job import Closing, QueueFull

_LOG = logging.getLogger(__name__)
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_PYDANTICS = "Value error, "
_LISTED = 5
"""Faults of one body that are named at most."""
_MOST_SAID = 4000
"""Characters of a message, which may hold what a client wrote: the names of experts that there are not."""
_LONGEST_NAME = 80
"""Characters that are told of a field's name, which is whatever a client wrote."""


class Refusal(Exception):  # noqa: N818 - reads as what happened
    """A request is refused.

    Attributes:
        status: the HTTP status.
        code: a short stable word such as "model_not_found".
        param: the field that is wrong; None if it is no single one.
        headers: beside the usual ones.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(_shortened(message))
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        param = None if self.param is None else _encodable(self.param)
        return {"error": {"message": _encodable(str(self)), "type": kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.as_json(), status_code=self.status, headers=self.headers)


def _shortened(message: str) -> str:
    """Without what is in the middle of a long one, for what to do next stands at its end."""
    half = _MOST_SAID // 2
    return message if len(message) <= _MOST_SAID else f"{message[:half]} ... {message[-half:]}"


def _encodable(text: str) -> str:
    """What a client wrote may hold half a surrogate pair, which is told as it would be escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of an error: of one that we did not raise on purpose, only that it happened."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, QueueFull):
        wait = {"Retry-After": str(error.retry_after)}
        return Refusal(str(error), status=429, code="queue_full", headers=wait)
    if isinstance(error, Closing):
        return Refusal(str(error), status=503, code="shutting_down", headers={"Retry-After": "5"})
    if isinstance(error, ExpertSetError):
        return Refusal(str(error), code="expert_set", param="experts")
    if isinstance(error, StorageError):
        _LOG.error("%s", error)  # with the path, which is nothing for clients
        told = "cannot record what answers use, so none is given; try again later, or tell whoever runs this server"
        return Refusal(told, status=503, code="not_recorded", headers={"Retry-After": "5"})
    if isinstance(error, MotetError):
        return Refusal(str(error), status=500, code="server_error")
    return Refusal("saw an error that was not foreseen; the server's log has it", status=500, code="server_error")


def refused(error: HTTPException) -> Refusal:
    """What FastAPI, or what stands in front of it, has refused."""
    code = "too_large" if error.status_code == 413 else "http_error"
    return Refusal(error.detail, status=error.status_code, code=code, headers=error.headers)


def install_errors(app: FastAPI) -> None:
    """Every error of `app` is answered in OpenAI's shape."""

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return _malformed(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code in (404, 405):
            said = f"saw {request.method} {request.url.path}, wanted a path and method of this server; /docs lists them"
            return Refusal(said, status=error.status_code, code="unknown_url").response()
        return refused(error).response()

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return refusal_of(error).response()

    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return refusal_of(error).response()

    app.add_exception_handler(Refusal, ours)
    app.add_exception_handler(MotetError, ours)
    app.add_exception_handler(Exception, unforeseen)


def _malformed(faults: Sequence[Mapping[str, Any]]) -> Refusal:
    if any(fault["type"] == "json_invalid" for fault in faults):
        where = faults[0].get("ctx", {}).get("error", "")
        return Refusal(f"saw a body that is no JSON ({where}), wanted a JSON object; correct it", code="invalid_json")
    named = [(_field(fault["loc"]), fault["msg"]) for fault in faults[:_LISTED]]
    said = "; ".join(f"{field or 'body'}: {message.removeprefix(_PYDANTICS)}" for field, message in named)
    return Refusal(f"saw a request that cannot be used: {said}; /docs tells the fields", param=named[0][0] or None)


def _field(place: Sequence[int | str]) -> str:
    """Where a fault is, as a client writes it: `messages.0.content`."""
    parts = (str(part) for part in place[place[:1] == ("body",) :] if part not in FORMS)
    return ".".join(part if len(part) <= _LONGEST_NAME else f"{part[:_LONGEST_NAME]}..." for part in parts)
