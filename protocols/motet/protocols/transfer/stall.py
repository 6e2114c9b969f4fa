"""A watchdog over a stream: when nothing moves for too long, the call is cancelled and its thread is free again."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

STALL_SECONDS = 120.0


class Watchdog:
    """Calls `bark` once when `touch` has not been called for `seconds`.

    with Watchdog(call.cancel) as watchdog:
        for chunk in call:
            watchdog.touch()
    """

    def __init__(self, bark: Callable[[], object], *, seconds: float = STALL_SECONDS) -> None:
        self._bark = bark
        self._seconds = seconds
        self._touched = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="motet-transfer-watchdog", daemon=True)

    def touch(self) -> None:
        """Something moved."""
        self._touched = time.monotonic()

    def __enter__(self) -> Self:
        self.touch()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while True:
            left = self._touched + self._seconds - time.monotonic()
            if left <= 0:
                self._bark()
                return
            if self._ended.wait(left):
                return
