"""Ed25519 signatures (RFC 8032) over canonical documents, bound to a purpose.

    key = SigningKey.generate(); key.save(path)
    signed = seal(contribution, key)            # travels as JSON
    contribution = signed.open(Contribution)    # SignatureError unless it holds

The purpose, the document's schema, is part of what is signed, so that a signature on one kind of
document never passes for another.
"""

import os
from pathlib import Path
from typing import Literal, Self, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from motet.protocols.canonical import write_atomically
from motet.protocols.documents import Document, PublicKey
from motet.protocols.errors import ConfigurationError, SignatureError

D = TypeVar("D", bound=Document)

_PREFIX = "ed25519:"


def _message(purpose: str, payload: bytes) -> bytes:
    return b"motet\x00" + purpose.encode() + b"\x00" + payload


class SigningKey:
    """An Ed25519 private key; `public` names its holder."""

    __slots__ = ("_private", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = _PREFIX + private.public_key().public_bytes_raw().hex()

    @classmethod
    def generate(cls) -> Self:
        """A new key from the system's random source."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a PEM file (PKCS #8, unencrypted).

        Raises:
            ConfigurationError: no such file, or it holds no Ed25519 key.
        """
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"saw no key at {path}; `motet join` makes an owner's, `motet init` a coordinator's"
            ) from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(
                f"{path} holds no readable private key: {error}; restore it from a backup"
            ) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigurationError(f"{path} holds a {type(private).__name__}, wanted an Ed25519 private key")
        return cls(private)

    def save(self, path: Path) -> None:
        """Write the key as PEM, readable by its owner only; an existing file is never overwritten.

        Raises:
            ConfigurationError: the file exists.
        """
        if path.exists():
            raise ConfigurationError(f"{path} exists, and a key is never overwritten; move it away first")
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomically(path, pem, mode=0o600)
        os.chmod(path, 0o600)  # noqa: PTH101 - against a umask that took bits away

    def sign(self, purpose: str, payload: bytes) -> str:
        """The signature over purpose and payload, 128 hexadecimal digits."""
        return self._private.sign(_message(purpose, payload)).hex()


def verify(public: str, purpose: str, payload: bytes, signature: str) -> None:
    """Check a signature.

    Raises:
        SignatureError: the key or the signature is malformed, or it does not hold.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public.removeprefix(_PREFIX)))
        key.verify(bytes.fromhex(signature), _message(purpose, payload))
    except (ValueError, InvalidSignature) as error:
        raise SignatureError(
            f"the signature of {public} on this {purpose} does not hold: "
            "it was changed on the way or signed by another key"
        ) from error


class Signed(Document):
    """A document in its canonical form with its signature: what travels and what is kept."""

    schema_: Literal["motet.signed/1"] = Field("motet.signed/1", alias="schema")
    purpose: str = Field(max_length=64)
    """The schema of the payload, for example "motet.contribution/1"."""
    payload: str
    """The payload's canonical JSON as text, byte for byte what was signed."""
    key: PublicKey
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    def open(self, kind: type[D], *, by: str | None = None) -> D:
        """Verify and parse.

        Args:
            kind: the document class expected.
            by: the public key that must have signed; None accepts any, and the caller looks at `key`.

        Raises:
            SignatureError: it was signed by another key, for another purpose, or does not hold.
            DocumentError: the payload is not a valid `kind`.
        """
        wanted = purpose_of(kind)
        if self.purpose != wanted:
            raise SignatureError(f"saw a signed {self.purpose}, wanted a {wanted}")
        if by is not None and self.key != by:
            raise SignatureError(f"saw a {wanted} signed by {self.key}, wanted {by}")
        payload = self.payload.encode()
        verify(self.key, self.purpose, payload, self.signature)
        document = kind.parse(payload)
        if document.canonical() != payload:
            raise SignatureError(f"the signed {wanted} is not in canonical form; sign it with this release of motet")
        return document


def purpose_of(kind: type[Document]) -> str:
    """The schema string that a document class declares, for example "motet.receipt/1"."""
    return str(kind.model_fields["schema_"].default)


def seal(document: Document, key: SigningKey) -> Signed:
    """Sign a document."""
    payload = document.canonical()
    purpose = purpose_of(type(document))
    return Signed(purpose=purpose, payload=payload.decode(), key=key.public, signature=key.sign(purpose, payload))
