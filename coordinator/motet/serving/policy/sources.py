"""Who tells which experts have been withdrawn: a coordinator's ledger, or a file.

Guarantees: a source that cannot be read whole tells nothing, it raises; what it told is forgotten only when it tells
otherwise, and what a ledger once withdrew it never gives back.

    sources = [LedgerSource(home, roster), DenyList(file, roster)]
    sources[0]()                                     # frozenset({"law"}): names that are served
"""

import logging
import re
from collections.abc import Callable, Collection
from pathlib import Path

from motet.coordinator.ledger_view import LedgerView
from motet.protocols.contribution import Contribution
from motet.protocols.errors import ConfigurationError
from motet.protocols.ledger import Standing
from motet.serving.expert_sets import Roster

Source = Callable[[], frozenset[str]]
"""The names of the experts that are gone; raises MotetError or OSError when it cannot be read."""
_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class LedgerSource:
    """The withdrawals in a coordinator's ledger on this machine, which is only read."""

    def __init__(self, home: Path, roster: Roster) -> None:
        """Raises ConfigurationError where there is no ledger, or one that never admitted an expert that is served, and
        LedgerError where its chain does not hold."""
        path = home / "ledger.sqlite"
        if not path.is_file():
            raise ConfigurationError(f"saw no {path}: {home} is no coordinator's home; name one made by `motet init`")
        self._home, self._ledger, self._named = home, LedgerView(path), _named(roster)
        self._gone = frozenset[str]()
        self.known: dict[str, Contribution] = dict(self._standing().admitted)

    def __call__(self) -> frozenset[str]:
        """See `Source`. Owners do not take withdrawals back: those that an older ledger lacks stay."""
        self._gone |= {self._named[digest] for digest in self._standing().withdrawn & self._named.keys()}
        return self._gone

    def _standing(self) -> Standing:
        self._ledger.look()
        standing = self._ledger.standing
        if strangers := sorted(name for digest, name in self._named.items() if digest not in standing.admitted):
            raise ConfigurationError(
                f"saw {strangers[0]}, which the ledger in {self._home} never admitted; name the home that this "
                "composite is from, or leave --home out"
            )
        return standing


class DenyList:
    """A file of names and contributions' digests, one a line; what follows a # is for people."""

    def __init__(self, path: Path, roster: Roster) -> None:
        """Raises ConfigurationError where the file cannot be read, or a line is neither a name nor a digest."""
        self._path, self._named, self._names = path, _named(roster), frozenset(roster.names[1:])
        self._content: bytes | None = None
        self._gone = frozenset[str]()
        try:
            self()
        except OSError as error:
            raise ConfigurationError(f"cannot read the deny list {path}: {error}; make it, empty for nobody") from error

    def __call__(self) -> frozenset[str]:
        """See `Source`. A line that is neither a name nor a digest might be meant for anybody: it is an error."""
        content = self._path.read_bytes()
        if content != self._content:
            self._gone, self._content = self._among(self._words(content)), content
        return self._gone

    def _words(self, content: bytes) -> list[str]:
        try:
            lines = content.decode().splitlines()
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"cannot read the deny list {self._path}: {error}; write it as UTF-8") from error
        words = [word for line in lines if (word := line.partition("#")[0].strip())]
        for word in words:
            if not (_NAME.fullmatch(word) or _DIGEST.fullmatch(word)):
                raise ConfigurationError(
                    f"{self._path}: saw {word!r}, wanted an expert's name or a contribution's digest a line; correct it"
                )
        return words

    def _among(self, words: Collection[str]) -> frozenset[str]:
        """The names that are served; a digest may be of a composite elsewhere, but a name may be written wrong."""
        if strangers := sorted(word for word in words if _NAME.fullmatch(word) and word not in self._names):
            _LOG.warning("%s: nobody who is served is called %s", self._path, ", ".join(strangers))
        return frozenset(name for word in words if (name := self._named.get(word, word)) in self._names)


def _named(roster: Roster) -> dict[str, str]:
    return dict(zip(roster.contributions, roster.names[1:], strict=True))
