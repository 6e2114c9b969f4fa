"""Control documents inside Flower's records; only the two Flower apps import this (it needs `flwr`).

    message = Message(pack(query), dst_node_id=node, message_type="query", ttl=60)
    status = unpack(reply.content, OwnerStatus)

A document travels as its canonical JSON under one key, so that nothing depends on Flower's own types. An inline
update is an opaque array of bytes, which Flower sends in chunks of 5 MB.
"""

from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from motet.protocols.documents import Document
from motet.protocols.errors import DocumentError
from motet.protocols.jobs import InlineUpdate

D = TypeVar("D", bound=Document)

_DOCUMENT = "motet"
_INLINE = "inline"
_OPAQUE = "motet.bytes"


def pack(document: Document, inline: InlineUpdate | None = None) -> RecordDict:
    """A document, and an update where there is one, as a message's content."""
    content = RecordDict({_DOCUMENT: ConfigRecord({"document": document.canonical()})})
    if inline is not None:
        content[_INLINE] = ArrayRecord({"manifest": _array(inline.manifest), "update": _array(inline.update)})
    return content


def unpack(content: RecordDict, kind: type[D]) -> D:
    """The document in a message's content.

    Raises:
        DocumentError: there is none, or it is not a valid `kind`.
    """
    record = content.get(_DOCUMENT)
    data = record.get("document") if isinstance(record, ConfigRecord) else None
    if not isinstance(data, bytes):
        raise DocumentError(f"saw a Flower message without a document, wanted a {kind.__name__}: update motet there")
    return kind.parse(data)


def unpack_inline(content: RecordDict) -> InlineUpdate | None:
    """The update that rides along, None if there is none.

    Raises:
        DocumentError: the record is there, but not as `pack` makes it.
    """
    record = content.get(_INLINE)
    if record is None:
        return None
    if not isinstance(record, ArrayRecord) or set(record) != {"manifest", "update"}:
        raise DocumentError("saw a malformed inline update in a Flower message, wanted a manifest and an update")
    return InlineUpdate(manifest=record["manifest"].data, update=record["update"].data)


def _array(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype=_OPAQUE, data=data)
