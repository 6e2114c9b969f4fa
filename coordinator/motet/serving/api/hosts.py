"""Which names a server answers to, so that no other site's page can reach it under a name of its own.

A browser lets a page read whatever has the page's own host name, wherever that name leads by now (DNS rebinding): a
page of elsewhere whose name turns into 127.0.0.1 could use a server on loopback as its visitor does. Such a request
says the foreign name in its Host header, and is answered 400.

    app.add_middleware(KnownHosts, names=known_names("127.0.0.1", ["models.example.org"]))
"""

import re
from collections.abc import Collection
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from motet.protocols.errors import ConfigurationError
from motet.serving.api.errors import Refusal

LOOPBACK: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
"""What this machine is called by itself. Every other address of loopback is as good."""
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/@*]+))(?::\d{0,5})?")
_SAID = 80
"""Letters of a foreign name that an answer repeats at most."""


def known_names(address: str, allowed: Collection[str] = ()) -> frozenset[str] | None:
    """The names of a server that listens on this address; None if any will do.

    Any will do when others can connect and nothing else is `allowed`: what it is called there, nobody here knows.

    Raises:
        ConfigurationError: `allowed` holds something else than a name, or an address.
    """
    names = frozenset(_given(name) for name in allowed)
    if not names and not _is_loopback(address):
        return None
    return LOOPBACK | names | {address.lower()}


class KnownHosts:
    """Refuses requests to any host but `names`, at whatever port; None lets all in."""

    def __init__(self, app: ASGIApp, *, names: Collection[str] | None) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._knows(said := _said(scope)):
            await self._app(scope, receive, send)
            return
        refusal = Refusal(
            f"saw the host {said[:_SAID]!r}, wanted localhost or a name that this server knows as its own; if it is "
            "one, start the server with --allowed-host NAME",
            code="unknown_host",
        )
        await refusal.response()(scope, receive, send)

    def _knows(self, said: str) -> bool:
        if self._names is None:
            return True
        name = host_name(said)
        return name is not None and (name in self._names or _is_loopback(name))


def host_name(host: str) -> str | None:
    """The name or address in a Host header, small letters, without port and brackets; None if it is none."""
    found = _HOST.fullmatch(host)
    return None if found is None else (found[1] or found[2]).lower().removesuffix(".")


def _given(name: str) -> str:
    bare = name.removeprefix("[").removesuffix("]")
    found = host_name(f"[{bare}]" if bare.count(":") > 1 else bare)
    if not found or bare.count(":") == 1:
        raise ConfigurationError(
            f"saw the allowed host {name!r}, wanted a name such as models.example.org, or an address, without scheme, "
            "port or pattern"
        )
    return found


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _said(scope: Scope) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
