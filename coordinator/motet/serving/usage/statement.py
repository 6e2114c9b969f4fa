"""A statement: what a server says experts took part in, signed with its own key.

Guarantees: it names nobody who asked; the same period of the same store gives the same answers and the same figures of
each contribution for ever, under the names and owners that the server knows when it states; whoever has it and the
server's public key can tell that it was not changed.

    signed = statement_of(store, key, owner=None, since=None, until=None)
    checked(Path("statement.json"), by=public_key)              # SignatureError unless it holds
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt

from motet.protocols.canonical import Digest
from motet.protocols.documents import Document, Name, PublicKey, Strict
from motet.protocols.errors import ConfigurationError
from motet.protocols.locks import locked
from motet.protocols.signing import Signed, SigningKey, seal
from motet.serving.usage.shares import moment
from motet.serving.usage.store import Period, Total, UsageStore

NOTICE = (
    "Gate mass is usage, not value: it says how much an expert took part, not what that was worth, and must not alone "
    "set a price."
)


class StatedUsage(Strict):
    """One expert's line."""

    name: Name
    contribution: Digest
    """The anchor's digest for the anchor."""
    owner: PublicKey | None
    """None for the anchor, and where the server was not told."""
    answers: NonNegativeInt
    """Answers whose expert set it was in."""
    generated_tokens: NonNegativeInt
    """Tokens of these answers."""
    microtokens: NonNegativeInt
    """Its gate mass in them: a million is one generated token."""


class UsageStatement(Document):
    """What experts took part in during a period."""

    schema_: Literal["motet.usage-statement/1"] = Field("motet.usage-statement/1", alias="schema")
    server: PublicKey
    owner: PublicKey | None
    """The owner whose experts alone are listed; None lists all."""
    since: str = Field(max_length=40)
    """ISO 8601, UTC; answers kept from then on."""
    until: str = Field(max_length=40)
    """Answers kept before then."""
    answers: NonNegativeInt
    """All answers of the server, whoever took part."""
    generated_tokens: NonNegativeInt
    experts: tuple[StatedUsage, ...] = Field(max_length=4096)
    notice: str = Field(NOTICE, max_length=400)


def statement_of(
    store: UsageStore, key: SigningKey, *, owner: str | None, since: int | None, until: int | None
) -> Signed:
    """A signed statement over a period, in milliseconds; None is from the beginning, and until now.

    Raises ConfigurationError for an end in the future, which could still change, and for a period that ends before it
    begins.
    """
    now = store.now()
    period = Period(since=since or 0, until=now if until is None else until)
    if period.until > now or period.since > period.until:
        raise ConfigurationError(
            f"saw a statement from {moment(period.since)} to {moment(period.until)}, wanted a period that is over by "
            f"{moment(now)}"
        )
    return seal(_stated(store.total(period, owner=owner), key.public, owner), key)


def checked(path: Path, *, by: str | None = None) -> UsageStatement:
    """A statement from a file, if it holds.

    Raises:
        ConfigurationError: the file cannot be read.
        DocumentError: it is no statement.
        SignatureError: it was changed, or not signed by the server that it names, or not by `by`.
    """
    try:
        signed = Signed.parse(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}; name a statement's file") from error
    return signed.open(UsageStatement, by=by or signed.open(UsageStatement).server)


def server_key(state: Path) -> SigningKey:
    """The key of the server whose folder this is, made when it is first asked for. Raises ConfigurationError."""
    path = state / "server.pem"
    with locked(state / ".server.pem.lock"):
        if not path.exists():
            SigningKey.generate().save(path)
        return SigningKey.load(path)


def _stated(total: Total, server: str, owner: str | None) -> UsageStatement:
    experts = tuple(
        StatedUsage(
            name=each.expert.name,
            contribution=each.expert.contribution,
            owner=each.expert.owner,
            answers=each.answers,
            generated_tokens=each.generated_tokens,
            microtokens=each.microtokens,
        )
        for each in total.experts
    )
    return UsageStatement(
        server=server,
        owner=owner,
        since=moment(total.period.since),
        until=moment(total.period.until),
        answers=total.answers,
        generated_tokens=total.generated_tokens,
        experts=experts,
    )
