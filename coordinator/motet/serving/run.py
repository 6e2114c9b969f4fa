"""A server on a socket, from its start to its orderly end.

Guarantees: it is ready when it says so; at SIGTERM or Ctrl-C what is under way has `GRACE` seconds to end, while new
requests are answered 503 and `/healthz` says "stopping"; then it takes no new connections.

    settings = ServerSettings(host="127.0.0.1", port=8000, name="demo", max_batch=16, queue=64)
    serve(composite, settings, ready=note)
"""

import asyncio
import gc
import math
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from motet.protocols.errors import ConfigurationError
from motet.serving.api.app import build_app
from motet.serving.api.hosts import known_names
from motet.serving.api.service import Service
from motet.serving.engine.engine import Engine
from motet.serving.engine.loading import Composite
from motet.serving.engine.threads import compute_with
from motet.serving.hooks import Hooks

GRACE = 30
"""Seconds that answers under way are given when the server is stopped."""
_LOOK = 0.25
"""Seconds after which to look whether somebody insists on an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where a server listens, and what it takes on.

    Attributes:
        host: the address to listen on.
        port: 0 for a free one.
        allowed_hosts: names by which it is reached, beside those of loopback.
        name: the model's.
        max_batch: sequences that are generated at once.
        queue: prompts that may wait.
        threads: what a pass computes with, None for all processors but one.
    """

    host: str
    port: int
    allowed_hosts: Collection[str] = ()
    name: str
    max_batch: int
    queue: int
    threads: int | None = None


def serve(
    composite: Composite,
    settings: ServerSettings,
    *,
    hooks: Hooks | None = None,
    extend: Callable[[FastAPI], None] = lambda app: None,
    ready: Callable[[str], None] = lambda line: None,
) -> None:
    """Serves until it is stopped.

    `extend` adds to the application; `ready` is told the address.

    Raises ConfigurationError when the address cannot be listened on, or an allowed host is none.
    """
    hooks = hooks or Hooks()
    compute_with(settings.threads)
    engine = Engine(composite, max_batch=settings.max_batch, queue=settings.queue, withdrawn=hooks.withdrawn)
    with closing(listening(settings.host, settings.port)) as listener, engine:
        names = known_names(listener.getsockname()[0], settings.allowed_hosts)
        app = build_app(Service(composite, engine, settings.name, hooks), hosts=names)
        extend(app)
        _keep_for_good()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again, when all has ended
        ready(f"ready on http://{_address(listener)}/v1, model {settings.name}: {', '.join(composite.roster.names)}")
        web_server(app).run(sockets=[listener])


def _keep_for_good() -> None:
    """No collection looks through what is loaded by now: it takes a quarter of a second, in which no answer goes on."""
    gc.collect()
    gc.freeze()


def web_server(app: FastAPI, *, grace: int = GRACE) -> uvicorn.Server:
    """The HTTP server for an application; answers under way are given `grace` seconds when it is stopped."""
    config = uvicorn.Config(app, ws="none", log_level="warning", access_log=False, timeout_graceful_shutdown=grace)
    return _Draining(config, app.state.service.engine, grace)


class _Draining(uvicorn.Server):
    """When stopped it goes on listening until the engine has ended what it took in, and ends as uvicorn's does."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace: int) -> None:
        super().__init__(config)
        self._engine, self._grace = engine, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        until = time.monotonic() + self._grace
        while not await asyncio.to_thread(self._engine.drain, _LOOK):
            if self.force_exit or time.monotonic() > until:
                break
        # Whoever has not ended by now is told so, and what was used is written down, before uvicorn breaks off.
        await asyncio.to_thread(self._engine.close)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(until - time.monotonic()))
        await super().shutdown(sockets)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises ConfigurationError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error}; name an address of this machine and a free port"
        ) from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
