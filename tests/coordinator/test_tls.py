"""The private authority: what it signs is accepted by a real TLS client, and nothing that holds is replaced."""

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from motet.coordinator.tls import AUTHORITY_DAYS, SERVER_DAYS, TlsFiles, ensure_tls
from motet.protocols.errors import ConfigurationError


def contents(files: TlsFiles) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files.authority.parent.iterdir()}


def shake_hands(files: TlsFiles, trusted: Path, name: str) -> str:
    """The TLS version that a strict client and a server with these files agree on."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.server, files.server_key)
    client = ssl.create_default_context(cafile=str(trusted))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def answer() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True):
                pass
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as wrapped:
            return wrapped.version() or ""
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", ["coordinator.example", "192.0.2.7", "localhost", "127.0.0.1", "::1"])
def test_a_strict_client_accepts_every_name(tmp_path: Path, name: str) -> None:
    files = ensure_tls(tmp_path, ["coordinator.example", "192.0.2.7"])
    assert shake_hands(files, files.authority, name) == "TLSv1.3"


def test_another_name_or_authority_is_not_accepted(tmp_path: Path) -> None:
    files = ensure_tls(tmp_path / "a", ["coordinator.example"])
    other = ensure_tls(tmp_path / "b", ["coordinator.example"])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(files, files.authority, "elsewhere.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(files, other.authority, "coordinator.example")


def test_keys_are_private_and_nothing_is_written_twice(tmp_path: Path) -> None:
    files = ensure_tls(tmp_path, ["coordinator.example"])
    assert sorted(contents(files)) == ["ca-key.pem", "ca.pem", "server-key.pem", "server.pem"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (files.authority_key, files.server_key)} == {0o600}
    before = contents(files)
    assert contents(ensure_tls(tmp_path, ["coordinator.example"])) == before


def test_an_expiring_certificate_is_renewed_under_the_same_authority_and_key(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    before = contents(ensure_tls(tmp_path, ["a.example"], now=now))
    assert contents(ensure_tls(tmp_path, ["a.example"], now=now + timedelta(days=SERVER_DAYS - 40))) == before
    after = contents(ensure_tls(tmp_path, ["a.example"], now=now + timedelta(days=SERVER_DAYS - 20)))
    assert {name for name in before if before[name] != after[name]} == {"server.pem"}
    renewed = x509.load_pem_x509_certificate(after["server.pem"])
    assert renewed.not_valid_after_utc > now + timedelta(days=SERVER_DAYS + 300)


def test_a_renewed_certificate_keeps_the_names_it_was_given_once(tmp_path: Path) -> None:
    ensure_tls(tmp_path, ["coordinator.example", "alias.example", "192.0.2.7"])
    later = datetime.now(UTC) + timedelta(days=SERVER_DAYS - 5)
    renewed = x509.load_pem_x509_certificate(
        ensure_tls(tmp_path, ["coordinator.example"], now=later).server.read_bytes()
    )
    names = renewed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert renewed.not_valid_after_utc > later + timedelta(days=30)
    assert {"alias.example", "coordinator.example"} <= set(names.get_values_for_type(x509.DNSName))
    assert "192.0.2.7" in {str(address) for address in names.get_values_for_type(x509.IPAddress)}


def test_a_new_address_gets_a_new_certificate(tmp_path: Path) -> None:
    before = contents(ensure_tls(tmp_path, ["a.example"]))
    files = ensure_tls(tmp_path, ["a.example", "b.example"])
    assert {name for name, data in contents(files).items() if before[name] != data} == {"server.pem"}
    assert shake_hands(files, files.authority, "b.example")


def test_a_certificate_of_another_authority_is_replaced(tmp_path: Path) -> None:
    files, other = ensure_tls(tmp_path / "a", []), ensure_tls(tmp_path / "b", [])
    files.server.write_bytes(other.server.read_bytes())
    files.server_key.write_bytes(other.server_key.read_bytes())
    assert shake_hands(ensure_tls(tmp_path / "a", []), files.authority, "localhost")


def test_what_cannot_be_mended_is_said(tmp_path: Path) -> None:
    files = ensure_tls(tmp_path, [])
    with pytest.raises(ConfigurationError, match="expired"):
        ensure_tls(tmp_path, [], now=datetime.now(UTC) + timedelta(days=AUTHORITY_DAYS + 1))
    with pytest.raises(ConfigurationError, match="ASCII"):
        ensure_tls(tmp_path, ["bücher.example"])
    files.authority_key.write_text("nonsense")
    with pytest.raises(ConfigurationError, match="restore it from a backup"):
        ensure_tls(tmp_path, [])
    files.authority.unlink()
    with pytest.raises(ConfigurationError, match="move the key away"):
        ensure_tls(tmp_path, [])
