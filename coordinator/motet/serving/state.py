"""The folder of a server: its key and its usage.

Guarantees: at any time it is used by servers of one composite, so that no statement adds up what two models did at
once unless they were served after one another.

    with used_by(default_state(), composite.digest):
        UsageStore(default_state() / USAGE_FILE)
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from motet.protocols.canonical import storage_errors, write_atomically
from motet.protocols.errors import ConfigurationError
from motet.protocols.locks import locked

USAGE_FILE = "usage.sqlite"


def default_state() -> Path:
    """Where a server keeps them unless it is told: below $XDG_STATE_HOME, or ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "motet" / "serving"


@contextmanager
def used_by(state: Path, composite: str) -> Iterator[None]:
    """Uses a server's folder, made if it is not there, for the composite of this digest; others may for the same.

    Raises:
        ConfigurationError: a running server uses it for another composite.
        StorageError: it cannot be written.
    """
    with storage_errors(state, new=True):
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as using:
        with locked(state / ".deciding.lock"):
            _require_free(state, composite)
            using.enter_context(locked(_lock(state), shared=True))
        yield


def _require_free(state: Path, composite: str) -> None:
    user = state / "composite"
    try:
        with locked(_lock(state), wait=False):
            write_atomically(user, f"{composite}\n".encode())
    except BlockingIOError:
        with storage_errors(user):
            other = user.read_text().strip()
        if other != composite:
            raise ConfigurationError(
                f"saw {state} in use by a server of another composite, {other}, wanted a folder of this one's own; "
                "name one with --state"
            ) from None


def _lock(state: Path) -> Path:
    return state / ".in-use.lock"
