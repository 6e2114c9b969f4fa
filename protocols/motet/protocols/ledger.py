"""The ledger: an append-only chain of entries, each naming the digest of the one before.

Pure functions of the entries; where they are kept is the coordinator's business.

    entry = following(last, kind="admitted", subject=digest, body={...}, at=now)
    standing = fold(entries)                 # LedgerError unless the chain holds
    standing = fold(newer, standing)         # and on from there
    standing.active                          # what the next composite is made of,
    standing.expired(time.time())            # but for what has expired
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, ValidationError

from motet.protocols.canonical import Digest
from motet.protocols.charter import Charter
from motet.protocols.contribution import Contribution, JoinRequest, Withdrawal
from motet.protocols.documents import Document, first_problem
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
        refusals: public key -> number of refusals recorded.
        last: the entry that the next one follows, None in an empty ledger.
    """

    charter: str | None = None
    owners: dict[str, JoinRequest] = field(default_factory=dict)
    admitted: dict[str, Contribution] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)
    refusals: dict[str, int] = field(default_factory=dict)
    last: LedgerEntry | None = None

    def copy(self) -> "Standing":
        """A standing that can be added to without changing this one."""
        return Standing(
            charter=self.charter,
            owners=dict(self.owners),
            admitted=dict(self.admitted),
            withdrawn=set(self.withdrawn),
            refusals=dict(self.refusals),
            last=self.last,
        )

    @property
    def active(self) -> dict[str, Contribution]:
        """Contribution digest -> contribution of what the next composite holds, unless it is expired by then.

        The newest version of every owner, unless that one is withdrawn: a withdrawal does not bring back
        the version before it.
        """
        newest: dict[str, str] = {}
        for digest, contribution in self.admitted.items():
            before = newest.get(contribution.owner)
            if before is None or self.admitted[before].version < contribution.version:
                newest[contribution.owner] = digest
        return {digest: self.admitted[digest] for digest in sorted(newest.values()) if digest not in self.withdrawn}

    def expired(self, now: float) -> dict[str, Contribution]:
        """What of `active` has terms that have ended at `now`, seconds since the epoch: no new composite holds it.

        Here too the version before does not come back.
        """
        return {digest: each for digest, each in self.active.items() if each.terms.ended(now)}


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


def fold(entries: Iterable[LedgerEntry], onto: Standing | None = None) -> Standing:
    """Check the chain and add up what it says; the owners' signatures inside are checked again.

    Args:
        entries: the ledger from its first entry, or what follows `onto.last`.
        onto: what the entries before add up to; it is left as it is.

    Raises:
        LedgerError: an entry is missing, changed, out of place, or contradicts an earlier one.
        SignatureError: an owner's signature kept in an entry does not hold.
    """
    standing = Standing() if onto is None else onto.copy()
    for entry in entries:
        _check_link(standing.last, entry)
        _apply(standing, entry)
        standing.last = entry
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
    match entry.kind:
        case "charter":
            charter = _signed(entry).open(Charter)
            _agree(entry, charter.digest, signed_by=charter.coordinator)
            standing.charter = charter.digest
        case "enrolled":
            _enrol(standing, entry)
        case "admitted":
            contribution = _signed(entry).open(Contribution)
            _agree(entry, contribution.digest, signed_by=contribution.owner)
            _contradicts(entry, contribution.owner not in standing.owners, "its owner was never enrolled")
            _contradicts(entry, contribution.digest in standing.withdrawn, "it was withdrawn before")
            standing.admitted[contribution.digest] = contribution
        case "withdrawn":
            _withdraw(standing, entry)
        case "refused":
            contribution = _signed(entry).open(Contribution)
            _agree(entry, contribution.digest, signed_by=contribution.owner)
            _contradicts(entry, contribution.owner not in standing.owners, "its owner was never enrolled")
            standing.refusals[contribution.owner] = standing.refusals.get(contribution.owner, 0) + 1
        case "composite":
            pass


def _enrol(standing: Standing, entry: LedgerEntry) -> None:
    request = _signed(entry).open(JoinRequest)
    _agree(entry, request.owner, signed_by=request.owner)
    _contradicts(entry, request.owner in standing.owners, "this owner is enrolled already")
    taken = {other.name for other in standing.owners.values()}
    _contradicts(entry, request.name in taken, f"the name {request.name} is another owner's")
    standing.owners[request.owner] = request


def _withdraw(standing: Standing, entry: LedgerEntry) -> None:
    withdrawal = _signed(entry).open(Withdrawal)
    _agree(entry, withdrawal.contribution, signed_by=withdrawal.owner)
    contribution = standing.admitted.get(withdrawal.contribution)
    stranger = contribution is None or contribution.owner != withdrawal.owner
    _contradicts(entry, stranger, "this owner has no such contribution")
    standing.withdrawn.add(withdrawal.contribution)


def _signed(entry: LedgerEntry) -> Signed:
    try:
        return Signed.model_validate(entry.body.get("signed"))
    except ValidationError as error:
        raise LedgerError(f"{_where(entry)} holds no signed document: {first_problem(error)}") from error


def _agree(entry: LedgerEntry, subject: str, *, signed_by: str) -> None:
    if entry.subject != subject:
        raise LedgerError(f"{_where(entry)} is about {entry.subject} but holds a document about {subject}")
    _contradicts(entry, _signed(entry).key != signed_by, f"its document is not signed by {signed_by}")


def _contradicts(entry: LedgerEntry, contradiction: bool, why: str) -> None:
    if contradiction:
        raise LedgerError(f"{_where(entry)} ({entry.kind} {entry.subject}) cannot be: {why}; restore a backup")


def _where(entry: LedgerEntry) -> str:
    return f"the ledger's entry {entry.sequence}"
