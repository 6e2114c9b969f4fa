"""What the coordinator signs in answer: a contribution was admitted, refused, or withdrawn.

receipt = signed.open(Receipt, by=charter.coordinator)
"""

from typing import Literal

from pydantic import Field

from motet.protocols.canonical import Digest
from motet.protocols.documents import Document, PublicKey


class Receipt(Document):
    """The coordinator's word on one contribution, with its place in the ledger."""

    schema_: Literal["motet.receipt/1"] = Field("motet.receipt/1", alias="schema")
    charter: Digest
    contribution: Digest
    owner: PublicKey
    status: Literal["admitted", "refused", "withdrawn"]
    reason: str | None = Field(None, max_length=64)
    """A short stable word when refused, for example "wrong-anchor"; None otherwise."""
    message: str | None = Field(None, max_length=2000)
    """What was seen, what was wanted and what to do next, when refused."""
    received_bytes: int = Field(ge=0)
    """Payload bytes that arrived for this update, repeats after a broken transfer included."""
    entry: Digest
    """The digest of the ledger entry that records this."""
    sequence: int = Field(ge=0)
    """The number of that entry in the ledger."""
