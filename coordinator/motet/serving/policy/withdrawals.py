"""Which experts must not be used any more: withdrawn in a ledger, on a deny list, or expired.

Guarantees: a thread of its own looks every `LOOK_SECONDS` at what the sources tell, and whoever asks is answered from
memory, whatever a source does; where one could not be read for `BLIND_SECONDS`, be it that it fails or that it does
not answer, every closed expert stops until it can be read again, for then nobody knows who has been withdrawn. So an
expert stops within 5 seconds, as far as one pass of the model does not take longer.

    with Withdrawals(roster.names, sources=[LedgerSource(home, roster), DenyList(file, roster)]) as withdrawals:
        withdrawals(frozenset({"law", "news"}))                         # those of them that are gone
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Self

from motet.serving.expert_sets import ANCHOR
from motet.serving.policy.sources import Source

LOOK_SECONDS = 1.0
"""How often the sources are looked at."""
BLIND_SECONDS = 4.0
"""How long a source may be out of sight before every closed expert stops."""
_LOG = logging.getLogger(__name__)


class Withdrawals:
    """What is gone by now; `Hooks.withdrawn`. May be called from several threads; looks while it is entered."""

    def __init__(
        self,
        names: Collection[str],
        *,
        sources: Sequence[Source] = (),
        expiries: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`expiries` are in seconds since the epoch, as `now` is; `clock` counts seconds. Raises as a source does."""
        self._closed, self._expiries = frozenset(names) - {ANCHOR}, dict(expiries or {})
        self._clock, self._now, self._ended = clock, now, threading.Event()
        self._watched = [_Watched(source, clock) for source in sources]
        self._thread = threading.Thread(target=self._watch, name="motet-withdrawals", daemon=True)

    def __call__(self, names: frozenset[str]) -> frozenset[str]:
        """Those of `names` that must not be used any more; never the anchor."""
        if any(each.blind() for each in self._watched):
            return names & self._closed
        return names & self._expired().union(*(each.gone for each in self._watched))

    def look(self) -> None:
        """Looks at every source."""
        for each in self._watched:
            each.look()

    def __enter__(self) -> Self:
        if self._watched:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()  # a source that does not answer is not waited for

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.look()

    def _expired(self) -> frozenset[str]:
        if not self._expiries:
            return frozenset()
        now = self._now()
        return frozenset(name for name, end in self._expiries.items() if end <= now)


class _Watched:
    """A source: what it told last, and when. Written by whoever looks, read by everybody."""

    def __init__(self, source: Source, clock: Callable[[], float]) -> None:
        self._source, self._clock, self._problem = source, clock, ""
        self._seen = clock()
        self.gone = source()

    def blind(self) -> bool:
        """Whether it has been out of sight for too long."""
        return self._clock() - self._seen >= BLIND_SECONDS

    def look(self) -> None:
        """Takes in what it tells; what keeps it from telling goes to the log, once."""
        began = self._clock()
        try:
            self.gone = self._source()
        except Exception as error:  # whatever it is: the thread must go on looking
            self._log(str(error) or repr(error))
            return
        self._seen = began
        if self._problem:
            _LOG.warning("who was withdrawn can be seen again")
            self._problem = ""

    def _log(self, error: str) -> None:
        problem = f"cannot see who was withdrawn{', so all experts are stopped' if self.blind() else ''}: {error}"
        if problem != self._problem:
            _LOG.error("%s", problem)
        self._problem = problem
