"""The federation's private certificate authority and the server certificate under it.

Guarantees: the authority's key never leaves its file (mode 0600); nothing that holds is overwritten; a server
certificate that is about to expire, belongs to another authority or lacks an address is issued anew.

    files = ensure_tls(home / "tls", ["federation.example.org", "127.0.0.1"])
    files.authority.read_text()             # goes into the charter; owners trust nothing else
"""

import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from motet.protocols.canonical import write_atomically
from motet.protocols.errors import ConfigurationError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
RENEW_DAYS = 30
"""A server certificate with fewer days left is issued anew."""

_BACKDATED = timedelta(hours=1)  # an owner's clock may be behind


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """PEM files of one coordinator."""

    authority: Path
    authority_key: Path
    server: Path
    server_key: Path

    @classmethod
    def of(cls, directory: Path) -> "TlsFiles":
        """The fixed names inside `directory`."""
        return cls(
            authority=directory / "ca.pem",
            authority_key=directory / "ca-key.pem",
            server=directory / "server.pem",
            server_key=directory / "server-key.pem",
        )


def ensure_tls(directory: Path, hosts: Sequence[str], *, now: datetime | None = None) -> TlsFiles:
    """Make what is missing: the authority once, the server certificate whenever it would not do.

    Args:
        directory: where the four files lie.
        hosts: names and addresses that clients will connect to; the loopback ones, and those that the server
            certificate has, are always added.
        now: the time to judge expiry by; None is the clock's.

    Raises:
        ConfigurationError: a file is damaged, or the authority has its certificate but not its key, or has expired.
        StorageError: the disk is full or the folder cannot be written.
    """
    files, moment = TlsFiles.of(directory), now or datetime.now(UTC)
    wanted = sorted({*hosts, *_names(files), "localhost", "127.0.0.1", "::1"})
    if not files.authority.exists():
        _make_authority(files, moment)
    authority, key = _read_certificate(files.authority), _read_key(files.authority_key)
    if authority.not_valid_after_utc <= moment:
        raise ConfigurationError(
            f"{files.authority} expired on {authority.not_valid_after_utc:%Y-%m-%d}, and every charter names it; "
            "begin a new federation with `motet init`"
        )
    if not _still_good(files, authority, wanted, moment):
        _issue_server(files, authority, key, wanted, moment)
    return files


def _make_authority(files: TlsFiles, now: datetime) -> None:
    if files.authority_key.exists():
        raise ConfigurationError(
            f"saw {files.authority_key} without {files.authority.name}; restore it, or move the key away for a new one"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Motet federation authority")])
    usage = _key_usage(key_cert_sign=True, crl_sign=True, digital_signature=False)
    builder = (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    _write_key(files.authority_key, key)
    write_atomically(files.authority, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _issue_server(
    files: TlsFiles,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    hosts: Iterable[str],
    now: datetime,
) -> None:
    key = _read_key(files.server_key) if files.server_key.exists() else ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Motet coordinator")])
    usage = _key_usage(key_cert_sign=False, crl_sign=False, digital_signature=True)
    builder = (
        _builder(name, authority.subject, key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    if not files.server_key.exists():
        _write_key(files.server_key, key)
    certificate = builder.sign(authority_key, hashes.SHA256())
    write_atomically(files.server, certificate.public_bytes(serialization.Encoding.PEM))


def _still_good(files: TlsFiles, authority: x509.Certificate, hosts: Iterable[str], now: datetime) -> bool:
    if not (files.server.exists() and files.server_key.exists()):
        return False
    certificate = _read_certificate(files.server)
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        certificate.not_valid_after_utc - now > timedelta(days=RENEW_DAYS)
        and certificate.public_key() == _read_key(files.server_key).public_key()
        and {_general_name(host) for host in hosts} <= set(names)
    )


def _names(files: TlsFiles) -> set[str]:
    """The names and addresses that the server certificate has, so that none is lost when it is issued anew."""
    if not files.server.exists():
        return set()
    found = _read_certificate(files.server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, key_cert_sign: bool, crl_sign: bool, digital_signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"saw host {host!r}, wanted an ASCII name or an address") from error


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomically(path, pem, mode=0o600)
    os.chmod(path, 0o600)  # noqa: PTH101 - whatever the umask


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read the certificate {path}: {error}; restore it from a backup") from error


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"cannot read the key {path}: {error}; restore it from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path} holds a {type(key).__name__}, wanted an elliptic curve key")
    return key
