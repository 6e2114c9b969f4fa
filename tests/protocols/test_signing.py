"""Signatures: what was signed opens, and nothing else does."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from motet.protocols.contribution import Withdrawal
from motet.protocols.documents import Document
from motet.protocols.errors import ConfigurationError, DocumentError, SignatureError
from motet.protocols.signing import Signed, SigningKey, purpose_of, seal, verify

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
ZEROS = "sha256:" + "0" * 64


class Note(Document):
    """A document of this test."""

    schema_: Literal["motet.note/1"] = Field("motet.note/1", alias="schema")
    text: str
    weight: float = 1.0


class Memo(Document):
    """The same fields for another purpose."""

    schema_: Literal["motet.memo/1"] = Field("motet.memo/1", alias="schema")
    text: str
    weight: float = 1.0


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_what_was_sealed_opens_after_the_journey(text: str, weight: float) -> None:
    signed = Signed.parse(seal(Note(text=text, weight=weight), KEY).canonical())
    assert signed.open(Note, by=KEY.public) == Note(text=text, weight=weight)


def test_signatures_are_deterministic() -> None:
    """A receipt made again from the ledger is the same receipt."""
    assert seal(Note(text="a"), KEY) == seal(Note(text="a"), KEY)


def test_another_signer_or_purpose_is_refused() -> None:
    signed = seal(Note(text="a"), KEY)
    with pytest.raises(SignatureError, match="wanted"):
        signed.open(Note, by=OTHER.public)
    with pytest.raises(SignatureError, match=r"wanted a motet\.memo/1"):
        signed.open(Memo)


@pytest.mark.parametrize(
    "change",
    [
        lambda signed: {"payload": signed.payload.replace('"a"', '"b"')},
        lambda signed: {"payload": signed.payload + " "},
        lambda signed: {"payload": ""},
        lambda signed: {"key": OTHER.public},
        lambda signed: {"key": "ed25519:" + "0" * 64},
        lambda signed: {"key": "ed25519:" + "f" * 64},
        lambda signed: {"signature": "0" * 128},
        lambda signed: {"signature": seal(Note(text="b"), KEY).signature},
        lambda signed: {"signature": seal(Memo(text="a"), KEY).signature},
    ],
)
def test_every_change_is_noticed(change: Callable[[Signed], dict[str, str]]) -> None:
    signed = seal(Note(text="a"), KEY)
    with pytest.raises(SignatureError):
        signed.model_copy(update=change(signed)).open(Note)


@given(st.integers(0, 511))
def test_every_bit_of_a_signature_counts(bit: int) -> None:
    signed = seal(Note(text="a"), KEY)
    flipped = f"{int(signed.signature, 16) ^ (1 << bit):0128x}"
    with pytest.raises(SignatureError):
        signed.model_copy(update={"signature": flipped}).open(Note)


def test_a_signature_does_not_pass_for_another_purpose() -> None:
    """Even with the payload of one kind relabelled as the other."""
    signed = seal(Note(text="a"), KEY)
    relabelled = Signed(purpose="motet.memo/1", payload=signed.payload, key=signed.key, signature=signed.signature)
    with pytest.raises(SignatureError):
        relabelled.open(Memo)


@pytest.mark.parametrize(
    "payload",
    ['{"text":"a","schema":"motet.note/1","weight":1.0}', '{"schema":"motet.note/1","text":"a"}', '{"text": "a"}'],
)
def test_a_payload_that_is_not_canonical_is_refused(payload: str) -> None:
    """Two byte strings for one meaning would be two digests for one document."""
    signature = KEY.sign("motet.note/1", payload.encode())
    signed = Signed(purpose="motet.note/1", payload=payload, key=KEY.public, signature=signature)
    with pytest.raises(SignatureError, match="canonical"):
        signed.open(Note)


@pytest.mark.parametrize("payload", ["", "{}", '{"schema":"motet.note/1","text":"a","weight":1e999}', "[" * 100000])
def test_a_signed_payload_that_is_no_document_is_a_document_error(payload: str) -> None:
    signature = KEY.sign("motet.note/1", payload.encode())
    with pytest.raises(DocumentError):
        Signed(purpose="motet.note/1", payload=payload, key=KEY.public, signature=signature).open(Note)


@pytest.mark.parametrize("public", ["", "ed25519:", "ed25519:zz", "ed25519:" + "0" * 62, "rsa:" + "0" * 64])
def test_malformed_keys_are_signature_errors(public: str) -> None:
    with pytest.raises(SignatureError):
        verify(public, "p", b"x", "0" * 128)


def test_purposes_are_schemas() -> None:
    assert purpose_of(Withdrawal) == "motet.withdrawal/1"


def test_keys_are_kept_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "owner.pem"
    KEY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).public == KEY.public
    with pytest.raises(ConfigurationError, match="never overwritten"):
        OTHER.save(path)
    assert SigningKey.load(path).public == KEY.public


def test_files_that_hold_no_key_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(ConfigurationError, match="motet join"):
        SigningKey.load(path)
    path.write_text("nonsense")
    with pytest.raises(ConfigurationError, match="no readable private key"):
        SigningKey.load(path)
    elliptic = ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(elliptic.private_bytes(encoding, form, serialization.NoEncryption()))
    with pytest.raises(ConfigurationError, match="wanted an Ed25519 private key"):
        SigningKey.load(path)
    path.write_bytes(elliptic.private_bytes(encoding, form, serialization.BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigurationError, match="no readable private key"):
        SigningKey.load(path)


def test_the_signature_is_pinned_across_releases(tmp_path: Path) -> None:
    """RFC 8032 over "motet", NUL, purpose, NUL, payload, with the all-zero seed's key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    assert SigningKey(private).sign("p", b"x") == private.sign(b"motet\x00p\x00x").hex()
