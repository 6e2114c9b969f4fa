"""What a coordinator's ledger says, for people.

Guarantees: those of `LedgerView`, on which it stands; in a ledger that was put in its place nothing of the other one is
told, and while one cannot be read everything stays as it was read last.

    reading = LedgerReading(home / "ledger.sqlite")
    reading.look()                                  # LedgerError if the chain does not hold
    reading.standing.active, reading.lines, reading.decisions
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motet.coordinator.ledger_view import LedgerView
from motet.protocols.charter import Charter
from motet.protocols.contribution import Contribution, JoinRequest, Withdrawal
from motet.protocols.ledger import EntryKind, LedgerEntry, Standing
from motet.protocols.signing import Signed

KEPT = 200
"""How many of the newest lines are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One entry, for people. who: the owner's name, empty where there is none; reason: of a refusal, or an owner's."""

    sequence: int
    digest: str
    at: str
    kind: EntryKind
    subject: str
    who: str = ""
    says: str = ""
    reason: str = ""


class LedgerReading:
    """What the ledger says so far. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        self._ledger = LedgerView(path)
        self._begin()

    def _begin(self) -> None:
        self.charter: Charter | None = None
        """What the first entry says."""
        self.lines: deque[Line] = deque(maxlen=KEPT)
        self.decisions: deque[Line] = deque(maxlen=KEPT)
        """Those lines that admit, refuse or withdraw."""
        self.enrolled: dict[str, str] = {}
        """Owner -> when."""
        self.received: dict[str, int] = {}
        """Contribution -> payload bytes that arrived for it, repeats included."""
        self._composites: list[tuple[str, frozenset[str]]] = []

    def look(self) -> None:
        """Take in what is new. Raises what `LedgerView.look` does."""
        for entry in self._ledger.look():
            if entry.sequence == 0:
                self._begin()
            self._note(entry)

    @property
    def standing(self) -> Standing:
        """What all entries add up to."""
        return self._ledger.standing

    @property
    def composite(self) -> str | None:
        """The digest of the newest one that has nobody in it who has withdrawn."""
        gone = self.standing.withdrawn
        return next((digest for digest, members in reversed(self._composites) if not members & gone), None)

    def _note(self, entry: LedgerEntry) -> None:
        told = _WORDS[entry.kind](entry.body)
        if entry.kind == "withdrawn":
            told["who"] = self.standing.admitted[entry.subject].name
        line = Line(
            sequence=entry.sequence, digest=entry.digest, at=entry.at, kind=entry.kind, subject=entry.subject, **told
        )
        self.lines.append(line)
        if entry.kind in ("admitted", "refused", "withdrawn"):
            self.decisions.append(line)
        if entry.kind == "charter":
            self.charter = _signed(entry.body).open(Charter)
        if entry.kind == "enrolled":
            self.enrolled[entry.subject] = entry.at
        if entry.kind == "admitted":
            self.received[entry.subject] = int(entry.body.get("received_bytes", 0))
        if entry.kind == "composite":
            members = entry.body.get("members", {})
            self._composites.append((entry.subject, frozenset(map(str, members.values()))))


def _founded(body: dict[str, Any]) -> dict[str, str]:
    return {"says": "the federation was founded"}


def _enrolled(body: dict[str, Any]) -> dict[str, str]:
    return {"who": _signed(body).open(JoinRequest).name, "says": "joined"}


def _decided(body: dict[str, Any]) -> dict[str, str]:
    contribution = _signed(body).open(Contribution)
    rank = "" if contribution.rank is None else f" of rank {contribution.rank}"
    reason, message = (str(body.get(key) or "") for key in ("reason", "message"))
    return {
        "who": contribution.name,
        "says": f"version {contribution.version}, {contribution.kind}{rank}, {contribution.update_bytes:,} bytes",
        "reason": message if reason in message else f"{reason}: {message}",
    }


def _withdrawn(body: dict[str, Any]) -> dict[str, str]:
    return {"says": "its owner has taken it back", "reason": _signed(body).open(Withdrawal).reason or ""}


def _composite(body: dict[str, Any]) -> dict[str, str]:
    return {"says": f"of {', '.join(sorted(map(str, body.get('members', ())))) or 'the anchor alone'}"}


def _signed(body: dict[str, Any]) -> Signed:
    return Signed.model_validate(body["signed"])


_WORDS: dict[EntryKind, Callable[[dict[str, Any]], dict[str, str]]] = {
    "charter": _founded,
    "enrolled": _enrolled,
    "admitted": _decided,
    "refused": _decided,
    "withdrawn": _withdrawn,
    "composite": _composite,
}
