"""Which experts must not be used any more: withdrawn in a ledger, on a deny list, or expired.

Guarantees: nobody is answered by what a source told more than `LOOK_SECONDS` ago; and where a source cannot be read
for `BLIND_SECONDS`, every closed expert stops until it can be read again, for then nobody knows who has been
withdrawn. So an expert stops within 5 seconds, as far as one pass of the model does not take longer.

    withdrawals = Withdrawals(roster.names, sources=[LedgerSource(home, roster), DenyList(file, roster)])
    withdrawals(frozenset({"law", "news"}))                             # those of them that are gone
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from motet.coordinator.ledger_store import LedgerStore
from motet.protocols.contribution import Contribution
from motet.protocols.errors import ConfigurationError, MotetError
from motet.serving.expert_sets import ANCHOR, Roster
from motet.serving.policy.keys import stamp

LOOK_SECONDS = 1.0
"""How long what sources told is good for."""
BLIND_SECONDS = 4.0
"""How long a source may be out of sight before every closed expert stops."""
_LOG = logging.getLogger(__name__)
_NAME_OR_DIGEST = re.compile(r"[a-z][a-z0-9-]{0,62}|sha256:[0-9a-f]{64}")

Source = Callable[[], frozenset[str]]
"""The names of the experts that are gone; raises MotetError or OSError when it cannot be read."""


class LedgerSource:
    """The withdrawals in a coordinator's ledger on this machine."""

    def __init__(self, home: Path, roster: Roster) -> None:
        """Raises ConfigurationError where there is no ledger, or one that never admitted an expert that is served, and
        LedgerError where its chain does not hold."""
        path = home / "ledger.sqlite"
        if not path.is_file():
            raise ConfigurationError(f"saw no {path}: {home} is no coordinator's home; name one made by `motet init`")
        self._ledger, self._named = LedgerStore(path), _named(roster)
        self.known: dict[str, Contribution] = dict(self._ledger.standing().admitted)
        if strangers := sorted(name for digest, name in self._named.items() if digest not in self.known):
            self.close()
            raise ConfigurationError(
                f"saw {strangers[0]}, which the ledger in {home} never admitted; name the home that this composite is "
                "from, or leave --home out"
            )

    def __call__(self) -> frozenset[str]:
        """See `Source`."""
        return frozenset(self._named[digest] for digest in self._ledger.standing().withdrawn & self._named.keys())

    def close(self) -> None:
        """Lets go of the ledger."""
        self._ledger.close()


class DenyList:
    """A file of names and contributions' digests, one a line; what follows a # is for people."""

    def __init__(self, path: Path, roster: Roster) -> None:
        """Raises ConfigurationError where the file cannot be read, or a line is neither a name nor a digest."""
        self._path, self._named, self._names = path, _named(roster), frozenset(roster.names[1:])
        self._seen, self._gone = stamp(path), frozenset[str]()
        try:
            words = self._words()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read the deny list {path}: {error}; make it, empty for nobody") from error
        for word in words:
            if not _NAME_OR_DIGEST.fullmatch(word):
                raise ConfigurationError(
                    f"{path}: saw {word!r}, wanted an expert's name or a contribution's digest a line"
                )
        self._gone = self._among(words)

    def __call__(self) -> frozenset[str]:
        """See `Source`. Lines that name nobody who is served deny nobody."""
        seen = stamp(self._path)
        if seen is None or seen != self._seen:
            self._gone, self._seen = self._among(self._words()), seen
        return self._gone

    def _words(self) -> list[str]:
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return [word for line in lines if (word := line.partition("#")[0].strip())]

    def _among(self, words: Collection[str]) -> frozenset[str]:
        return frozenset(name for word in words if (name := self._named.get(word, word)) in self._names)


class Withdrawals:
    """What is gone by now; `Hooks.withdrawn`. May be called from several threads."""

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
        self._closed, self._sources, self._expiries = frozenset(names) - {ANCHOR}, tuple(sources), dict(expiries or {})
        self._clock, self._now, self._guard = clock, now, threading.Lock()
        self._gone = self._told()
        self._looked = self._seen = clock()

    def __call__(self, names: frozenset[str]) -> frozenset[str]:
        """Those of `names` that must not be used any more; never the anchor."""
        with self._guard:
            if self._sources and self._clock() - self._looked >= LOOK_SECONDS:
                self._look()
            gone = self._gone
        return names & (gone | self._expired()) if gone or self._expiries else frozenset()

    def _look(self) -> None:
        try:
            self._gone = self._told()
            self._looked = self._seen = self._clock()
        except (MotetError, OSError, ValueError) as error:
            self._looked = self._clock()
            if blind := self._looked - self._seen >= BLIND_SECONDS:
                self._gone = self._closed
            _LOG.error("cannot see who was withdrawn%s: %s", ", so all experts are stopped" if blind else "", error)

    def _told(self) -> frozenset[str]:
        return frozenset().union(*(source() for source in self._sources))

    def _expired(self) -> frozenset[str]:
        now = self._now()
        return frozenset(name for name, end in self._expiries.items() if end <= now)


def _named(roster: Roster) -> dict[str, str]:
    return dict(zip(roster.contributions, roster.names[1:], strict=True))
