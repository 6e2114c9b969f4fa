"""The ledger: an append-only chain of entries, each naming the digest of the one before.

Pure functions of the entries; where they are kept is the coordinator's business.

    entry = following(last, kind="admitted", subject=digest, body={...}, at=now)
    standing = fold(entries)                 # LedgerError unless the chain holds
    standing.active                          # what the next composite is made of
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from motet.protocols.canonical import Digest
from motet.protocols.contribution import Contribution, JoinRequest, Withdrawal
from motet.protocols.documents import Document
from motet.protocols.errors import LedgerError
from motet.protocols.signing import Signed

GENESIS = "sha256:" + "0" * 64

EntryKind = Literal["charter", "enrolled", "admitted", "refused", "withdrawn", "composite"]


class LedgerEntry(Document):
    """One line of the ledger."""

    schema_: Literal["motet.ledger-entry/1"] = Field("motet.ledger-entry/1", alias="schema")
    sequence: int = Field(ge=0)
    previous: Digest
    """The digest of the entry before; 64 zeros for the first."""
    kind: EntryKind
    at: str = Field(max_length=40)
    """ISO 8601, UTC, by the coordinator's clock."""
    subject: str = Field(max_length=128)
    """The digest or key that the entry is about."""
    body: dict[str, Any]
    """The signed document that caused it, or what the coordinator decided and why."""


@dataclass(kw_only=True, slots=True)
class Standing:
    """What the entries add up to.

    Attributes:
        owners: public key -> join request of every enrolled owner.
        admitted: contribution digest -> contribution of everything ever admitted.
        withdrawn: contribution digests with a tombstone.
    """

    charter: str | None = None
    owners: dict[str, JoinRequest] = field(default_factory=dict)
    admitted: dict[str, Contribution] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)

    @property
    def active(self) -> dict[str, Contribution]:
        """Contribution digest -> contribution of what the next composite holds.

        The newest version of every owner, unless that one is withdrawn: a withdrawal does not bring back
        the version before it.
        """
        newest: dict[str, str] = {}
        for digest, contribution in self.admitted.items():
            before = newest.get(contribution.owner)
            if before is None or self.admitted[before].version < contribution.version:
                newest[contribution.owner] = digest
        return {digest: self.admitted[digest] for digest in sorted(newest.values()) if digest not in self.withdrawn}


def following(last: LedgerEntry | None, *, kind: EntryKind, subject: str, body: dict[str, Any], at: str) -> LedgerEntry:
    """The entry that follows `last`, or the first when it is None."""
    return LedgerEntry(
        sequence=0 if last is None else last.sequence + 1,
        previous=GENESIS if last is None else last.digest,
        kind=kind,
        at=at,
        subject=subject,
        body=body,
    )


def fold(entries: Iterable[LedgerEntry]) -> Standing:
    """Check the chain and add up what it says; the owners' signatures inside are checked again.

    Raises:
        LedgerError: an entry is missing, changed, out of place, or contradicts an earlier one.
        SignatureError: an owner's signature kept in an entry does not hold.
    """
    standing = Standing()
    last: LedgerEntry | None = None
    for entry in entries:
        _check_link(last, entry)
        _apply(standing, entry)
        last = entry
    return standing


def _check_link(last: LedgerEntry | None, entry: LedgerEntry) -> None:
    sequence = 0 if last is None else last.sequence + 1
    previous = GENESIS if last is None else last.digest
    if entry.sequence != sequence or entry.previous != previous:
        raise LedgerError(
            f"the ledger's chain breaks at entry {entry.sequence}: it follows {entry.previous}, wanted {previous} as "
            f"entry {sequence}; it was changed or cut outside of motet, restore it from a backup"
        )
    if (entry.kind == "charter") != (last is None):
        raise LedgerError(f"entry {entry.sequence} is a {entry.kind}: the first entry, and only it, is the charter")


def _apply(standing: Standing, entry: LedgerEntry) -> None:
    if entry.kind == "charter":
        standing.charter = entry.subject
    elif entry.kind == "enrolled":
        request = _signed(entry).open(JoinRequest, by=entry.subject)
        standing.owners[request.owner] = request
    elif entry.kind == "admitted":
        contribution = _signed(entry).open(Contribution)
        _agree(entry, contribution.digest)
        standing.admitted[contribution.digest] = contribution
    elif entry.kind == "withdrawn":
        withdrawal = _signed(entry).open(Withdrawal)
        _agree(entry, withdrawal.contribution)
        standing.withdrawn.add(withdrawal.contribution)


def _signed(entry: LedgerEntry) -> Signed:
    return Signed.model_validate(entry.body.get("signed"))


def _agree(entry: LedgerEntry, subject: str) -> None:
    if entry.subject != subject:
        raise LedgerError(f"entry {entry.sequence} is about {entry.subject} but holds a document about {subject}")
