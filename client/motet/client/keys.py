"""An owner's two keys: Ed25519 for what is signed, P-384 for the SuperNode's place in Flower.

Flower authenticates nodes with NIST curves only, so the second key is bound to the first by the signature on the
join request. Private keys are written once, readable by their owner only, and never overwritten.

    key = owner_key(Path("keys/owner.pem"))            # made on the first call
    line = flower_public_key(Path("keys/flower"))      # "ecdsa-sha2-nistp384 AAAA…"
"""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from motet.protocols.canonical import write_atomically
from motet.protocols.errors import ConfigurationError
from motet.protocols.signing import SigningKey


def owner_key(path: Path) -> SigningKey:
    """The owner's signing key, made and saved if there is none yet.

    Raises:
        ConfigurationError: the file holds no Ed25519 key.
    """
    if not path.exists():
        SigningKey.generate().save(path)
    return SigningKey.load(path)


def flower_public_key(path: Path) -> str:
    """The public half, an OpenSSH line, of the P-384 key at `path`; both halves are made if there are none yet.

    `path` is the file that `flower-supernode --auth-supernode-private-key` reads; `path` + ".pub" the one that
    `flwr supernode register` reads.

    Raises:
        ConfigurationError: the file holds no P-384 key in OpenSSH's format.
    """
    if not path.exists():
        _make_flower_key(path)
    try:
        private = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"{path} holds no OpenSSH private key: {error}; restore it from a backup, or remove it and join again"
        ) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP384R1):
        raise ConfigurationError(f"{path} holds another kind of key, wanted a P-384 one; remove it and join again")
    line = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public = path.with_name(path.name + ".pub")
    if not public.exists():
        write_atomically(public, line + b"\n")
    return line.decode()


def _make_flower_key(path: Path) -> None:
    private = ec.generate_private_key(ec.SECP384R1())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, pem, mode=0o600)
