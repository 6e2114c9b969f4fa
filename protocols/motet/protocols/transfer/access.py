"""What an owner signs to use the data plane once: an action on a subject, for one coordinator, with one nonce.

access = AccessRequest(action="fetch", nonce=nonce, audience=audience_of(charter), subject=digest, owner=key.public)
seal(access, key)
"""

from typing import Literal

from pydantic import Field

from motet.protocols.canonical import Digest
from motet.protocols.charter import Charter
from motet.protocols.documents import Document, PublicKey

Action = Literal["contribute", "fetch", "withdraw"]


class AccessRequest(Document):
    """An owner's signed wish, good for one call of one server."""

    schema_: Literal["motet.access/1"] = Field("motet.access/1", alias="schema")
    action: Action
    nonce: str = Field(pattern=r"^[0-9a-f]{80}$")
    """What the server's `Nonce` call gave."""
    audience: str = Field(max_length=512)
    """Whom the request is for: the charter's digest and the data plane's address (`audience_of`)."""
    subject: Digest
    """The digest of the manifest, of the publication, or of the withdrawal; to fetch, the charter's digest means the
    newest composite."""
    owner: PublicKey


def audience_of(charter: Charter) -> str:
    """The audience of requests to the coordinator of a charter."""
    return f"{charter.digest}@{charter.addresses.data_plane}"


def charter_of(audience: str) -> str:
    """The digest of the charter that an audience is of."""
    return audience.partition("@")[0]
