"""A request's body as JSON, with less in it than takes long to check: every other client's answer waits meanwhile.

Guarantees: a body is refused before it is read if it has more lists, objects, values and fields than a request that
fits a model, and before the rest of it is read if it has more than `MOST_OBJECTS` objects (each message is one, and
each part of a message) or `MOST_FIELDS` fields in one. A thread would not do: while Python reads JSON, no other runs.

    async def keyed(request): return await handle(MeasuredRequest(request.scope, request.receive))
"""

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

MOST_BRACKETS = 1 << 16
"""Opening ones of both kinds, in texts or not: it takes no time to count them all."""
MOST_COMMAS = 1 << 18
"""And colons, in texts or not."""
MOST_OBJECTS = 4096
MOST_FIELDS = 256


class MeasuredRequest(Request):
    """A request whose JSON is measured while it is read."""

    async def json(self) -> Any:  # noqa: ANN401 - as it came
        """What the body says. Raises as `read_json`."""
        if not hasattr(self, "_json"):
            self._json = read_json(await self.body())
        return self._json


def read_json(body: bytes) -> Any:  # noqa: ANN401
    """What `body` says.

    Raises:
        JSONDecodeError: it says nothing.
        HTTPException: it says more than it may.
    """
    text = _text(body)
    _require_few(text, "[{", MOST_BRACKETS)
    _require_few(text, ",:", MOST_COMMAS)
    objects = 0

    def counted(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal objects
        objects += 1
        if objects > MOST_OBJECTS:
            raise _too_large(f"saw more than {MOST_OBJECTS:,} objects in a body, wanted fewer messages, or fewer parts")
        if len(fields) > MOST_FIELDS:
            raise _too_large(f"saw an object of {len(fields):,} fields, wanted {MOST_FIELDS} at most")
        return dict(fields)

    try:
        return json.loads(text, object_pairs_hook=counted)
    except RecursionError as error:
        raise json.JSONDecodeError("lists or objects within one another too deeply", "", 0) from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # Python's limit to the digits of an integer
        raise json.JSONDecodeError("a number of too many digits", "", 0) from error


def _text(body: bytes) -> str:
    encoding = json.detect_encoding(body)
    try:
        return body.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(f"byte {error.start} is no {encoding.upper()}", "", 0) from error


def _require_few(text: str, marks: str, most: int) -> None:
    if (seen := sum(text.count(mark) for mark in marks)) > most:
        raise _too_large(
            f"saw a body with {seen:,} of {' and '.join(marks)}, wanted {most:,} at most, and {MOST_OBJECTS:,} objects "
            "(messages, and parts of messages)"
        )


def _too_large(said: str) -> HTTPException:
    """Of a kind that FastAPI lets through when it comes up while a body is read."""
    return HTTPException(413, f"{said}; send less at once")
