"""An answer's row on the books, as it is written down: no texts, whole microtokens.

entry = entry_of(record, ids)                               # ids: by expert id, the anchor's digest first
Entry.of(entry.to_bytes()) == entry                         # out of a file
most_bytes(ids, choices=2)                                  # no entry of so many choices is larger
"""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, ValidationError

from motet.protocols.documents import Strict
from motet.protocols.errors import StorageError
from motet.serving.hooks import Record
from motet.serving.usage.shares import apportioned

MODEL_BYTES = 1024
"""Of the longest model's name that `most_bytes` thinks of."""
_MOST = (1 << 63) - 1
"""The largest whole number that the books hold."""


class Entry(Strict):
    """What an answer used."""

    schema_: Literal["motet.usage-entry/1"] = Field("motet.usage-entry/1", alias="schema")
    id: str
    created: int
    """Seconds since the epoch."""
    tenant: str | None
    endpoint: str
    model: str
    composite: str
    expert_set: str
    prompt_tokens: int
    generated_tokens: int
    finish_reasons: tuple[str, ...]
    """Of every choice."""
    microtokens: dict[str, int]
    """Gate mass of those in the set, by contribution, the anchor's digest among them."""

    def to_bytes(self) -> bytes:
        """As JSON."""
        return self.model_dump_json(by_alias=True).encode()

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Out of `to_bytes`. Raises StorageError."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise StorageError(
                f"saw an entry that cannot be read ({where}: {fault['msg']}), wanted one that this release of motet "
                "wrote; start the release that wrote it, or move the file away, and with it what it holds"
            ) from error


def entry_of(record: Record, ids: Sequence[str]) -> Entry:
    """What a record says, with the contributions of its experts: `ids`, the anchor's digest first."""
    masses = apportioned(record)
    used = (number for number, name in enumerate(record.experts) if name in record.used)
    return Entry(
        id=record.id,
        created=record.created,
        tenant=record.tenant,
        endpoint=record.endpoint,
        model=record.model,
        composite=record.composite,
        expert_set=record.expert_set,
        prompt_tokens=record.prompt_tokens,
        generated_tokens=record.generated_tokens,
        finish_reasons=tuple(choice.finish_reason for choice in record.choices),
        microtokens={ids[number]: masses[number] for number in used},
    )


def most_bytes(ids: Sequence[str], *, choices: int) -> int:
    """Bytes of the largest entry of an answer of so many choices, where all these experts took part."""
    digest = "sha256:" + "f" * 64
    largest = Entry(
        id="motet-" + "f" * 32,
        created=_MOST,
        tenant="t" * 63,
        endpoint="/v1/chat/completions",
        model="m" * MODEL_BYTES,
        composite=digest,
        expert_set=digest,
        prompt_tokens=_MOST,
        generated_tokens=_MOST,
        finish_reasons=(),
        microtokens=dict.fromkeys(ids, _MOST),
    )
    return len(largest.to_bytes()) + choices * len('"expert_withdrawn",')
