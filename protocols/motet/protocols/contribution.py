"""What an owner signs: the request to join, a contribution's manifest, a withdrawal, an evaluation.

manifest = Contribution(name="medicine", owner=key.public, ...)
signed = seal(manifest, key)
manifest.digest                   # names the contribution everywhere, for ever
"""

import math
from datetime import UTC, date, datetime
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from motet.protocols.canonical import Digest
from motet.protocols.codec.settings import Method
from motet.protocols.documents import Document, Name, PublicKey, Strict
from motet.protocols.errors import CodecError
from motet.protocols.evaluation.diagnosis import Diagnostics
from motet.protocols.evaluation.losses import AVERAGE, PUBLIC
from motet.protocols.evaluation.sums import LEAST_NATS, MOST_NATS

MAX_BYTES = 1 << 42
MAX_RANK = 1 << 14
"""No charter admits more: a matrix of that rank is a full one."""
LOWRANK_METHODS: tuple[Method, ...] = ("int8", "int4", "lossless", "raw")
"""How a low-rank expert's factors may travel: every value of them counts, so that none is left out."""
ExpertKind = Literal["full", "lowrank"]
RESERVED_NAMES = ("anchor", PUBLIC, "soup", "composite", AVERAGE)
"""Rows and columns of every report: no expert is called so."""


def require_lowrank_method(method: str) -> None:
    """Refuse a method that leaves values out, with a CodecError: of factors every value counts."""
    if method not in LOWRANK_METHODS:
        raise CodecError(
            f"saw the method {method} for a low-rank expert, wanted one of {', '.join(LOWRANK_METHODS)}: it leaves out "
            "values, and of factors every value counts; choose another under [codec]"
        )


class JoinRequest(Document):
    """An owner's wish to be enrolled; signing it binds the Flower key to the owner's key."""

    schema_: Literal["motet.join-request/1"] = Field("motet.join-request/1", alias="schema")
    charter: Digest
    name: Name
    """What the owner's expert and its column in the tables are called."""
    owner: PublicKey
    flower_key: str = Field(max_length=1024)
    """The P-384 public key (OpenSSH line) that authenticates the owner's SuperNode."""

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value in RESERVED_NAMES:
            raise ValueError(f"'{value}' names a row or a column of every report; choose another name")
        return value


class Terms(Strict):
    """Under which conditions the owner lends the expert."""

    licence: str = Field(max_length=64)
    """SPDX identifier, or LicenseRef-… for terms of the owner's own."""
    attribution: str | None = Field(None, max_length=500)
    """The line to show where the expert is used; None asks for none."""
    purpose: str | None = Field(None, max_length=500)
    """What the expert may be used for; None is anything the licence allows."""
    expiry: str | None = None
    """From when on nobody may use the expert, UTC, as 2027-01-31T00:00:00Z; a bare date is its first moment. None is
    never."""

    @field_validator("expiry", mode="before")
    @classmethod
    def _in_utc(cls, value: object) -> object:
        return None if value is None else _moment(value)

    def __str__(self) -> str:
        purpose = self.purpose or "any that the licence allows"
        until = "" if self.expiry is None else f"; until {self.expiry}"
        return f"{self.licence}; attribution: {self.attribution or 'none'}; purpose: {purpose}{until}"

    @property
    def expires_at(self) -> float | None:
        """`expiry` in seconds since the epoch."""
        return None if self.expiry is None else datetime.fromisoformat(self.expiry).timestamp()

    def ended(self, now: float) -> bool:
        """Whether nobody may use the expert any more at `now`, seconds since the epoch."""
        return self.expires_at is not None and self.expires_at <= now


def _moment(value: object) -> str:
    """A time or date, as TOML or text has them, in its one form; one without an offset is UTC's."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"saw {value!r}, wanted a date such as 2027-01-31, or a time with its offset") from error
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime):
        raise ValueError(f"saw {value!r}, wanted a date such as 2027-01-31")
    value = value.replace(tzinfo=UTC) if value.tzinfo is None else value
    try:
        value = value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"saw {value}, wanted a time from year 1 to 9999, UTC") from error
    return value.replace(microsecond=0, tzinfo=None).isoformat() + "Z"


class TrainingRecord(Strict):
    """How the expert was trained, for the expert's card."""

    steps: int = Field(ge=0)
    tokens: int = Field(ge=0)
    documents: int = Field(ge=1)
    """Documents of the owner's own text that were trained on."""
    held_out_documents: int = Field(ge=1)
    seed: int
    public_share: float = Field(ge=0, lt=1)


class CodecRecord(Strict):
    """How the update was encoded, and what that cost, for the expert's card."""

    method: Method
    scale_factor: float | None = Field(None, gt=0)
    """What the scales of the least squared error were multiplied with, for methods whose scales can be tuned."""
    tuning_documents: int = Field(0, ge=0)
    """Held-out documents that the encoding was chosen on; none of them counts in `bits_per_byte` or `gain_kept`."""
    gain_kept: float | None = None
    """The share of the trained expert's gain over the anchor that the encoded one keeps; None when there is no gain."""


class Contribution(Document):
    """The manifest of one update: terms, digests, measurements."""

    schema_: Literal["motet.contribution/1"] = Field("motet.contribution/1", alias="schema")
    charter: Digest
    anchor: Digest
    name: Name
    owner: PublicKey
    version: int = Field(1, ge=1)
    """Grows with every contribution of this owner; an older one is refused as a replay."""
    kind: ExpertKind = "full"
    rank: int | None = Field(None, ge=1, le=MAX_RANK)
    """Of a low-rank expert's factors; None for a full expert."""
    base: Digest | None = None
    """The owner's admitted contribution whose expert the update changes; None when it changes the anchor. A low-rank
    expert has none: its factors travel whole."""
    update: Digest
    """The digest of the update's file."""
    update_bytes: int = Field(gt=0, le=MAX_BYTES)
    terms: Terms
    training: TrainingRecord
    codec: CodecRecord
    proxies: tuple[Digest, ...] = Field((), max_length=4096)
    """Ids of public documents like the owner's own, sorted, for tuning the router; none if the owner declines."""
    bits_per_byte: dict[str, float] = Field(max_length=32)
    """What the owner measured on held-out text: "anchor", "expert" as the update defines it, and "trained" as it was
    before encoding."""

    def as_json(self) -> dict[str, Any]:
        """The document as a JSON object; without proxies, rank or expiry it has no such keys, as releases before signed
        it."""
        whole = super().as_json()
        whole["terms"] = {key: value for key, value in whole["terms"].items() if (key, value) != ("expiry", None)}
        later = {"proxies": bool(self.proxies), "rank": self.rank is not None}
        return {key: whole[key] for key in whole if later.get(key, True)}

    @model_validator(mode="after")
    def _check_rank(self) -> Self:
        if (self.kind == "lowrank") != (self.rank is not None):
            raise ValueError(
                f"kind, rank: saw kind '{self.kind}' with rank {self.rank}, wanted a rank exactly if it is 'lowrank'"
            )
        if self.kind == "lowrank" and self.base is not None:
            raise ValueError(f"kind, base: saw a low-rank expert with base {self.base}, wanted none; pack it whole")
        return self


class Withdrawal(Document):
    """The owner takes a contribution back: a tombstone in the ledger, for every later composite."""

    schema_: Literal["motet.withdrawal/1"] = Field("motet.withdrawal/1", alias="schema")
    charter: Digest
    contribution: Digest
    owner: PublicKey
    reason: str | None = Field(None, max_length=500)


class Score(Strict):
    """A loss summed over held-out text, as far as it may leave the owner."""

    nats: float = Field(ge=LEAST_NATS, le=MOST_NATS)
    """Summed negative log-likelihood, natural logarithm."""
    bytes: int = Field(gt=0, le=MAX_BYTES)
    """UTF-8 bytes scored."""
    documents: int = Field(ge=1, le=MAX_BYTES)
    bits_per_byte_variance: float = Field(ge=0, le=MOST_NATS**2)
    """Variance of the bits per byte under resampling of documents (bootstrap)."""

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte."""
        return self.nats / math.log(2) / self.bytes


class EvaluationReport(Document):
    """What an owner measured of a composite on text that never left."""

    schema_: Literal["motet.evaluation/1"] = Field("motet.evaluation/1", alias="schema")
    charter: Digest
    composite: Digest
    owner: PublicKey
    domain: Name
    rows: dict[str, Score] = Field(min_length=1, max_length=4096)
    """Row of the report ("anchor", "expert:NAME", "soup", "composite", "composite-without:NAME", and if they were asked
    for "set:A+B") -> score."""
    diagnostics: Diagnostics | None = None
    """What the composite's gate did with the text, and the loss by position; None from releases that do not tell."""

    def as_json(self) -> dict[str, Any]:
        """The document as a JSON object; without diagnostics it is, byte for byte, what releases before them signed."""
        whole = super().as_json()
        return whole if self.diagnostics is not None else {key: whole[key] for key in whole if key != "diagnostics"}
