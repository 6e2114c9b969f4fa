"""A simulated coordinator for the transfer tests, in this process or (run as a script) in one that can be killed.

python conftest.py serve HOME       a server over HOME/site.json
python conftest.py upload HOME      an owner that uploads HOME/update.bin, then prints its memory in bytes
"""

import datetime
import hashlib
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from motet.protocols.canonical import digest_of, file_digest, hex_of, write_atomically
from motet.protocols.contribution import CodecRecord, Contribution, Terms, TrainingRecord, Withdrawal
from motet.protocols.errors import AdmissionRefused
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, SigningKey, seal
from motet.protocols.transfer import Patience, UploadOutcome, connect, serve, upload

CHARTER = digest_of("charter")
ANCHOR = digest_of("anchor")
AUDIENCE = f"{CHARTER}@coordinator.example:9443"
IMPATIENT = Patience(attempts=4, first_seconds=0.05, longest_seconds=0.2)
SERVER_PATIENCE = Patience(attempts=12, first_seconds=0.2, longest_seconds=1.0)


class Rules:
    """The simplest TransferPolicy that keeps its state on disk."""

    audience = AUDIENCE
    guests = False
    newest: str | None = None

    def __init__(self, home: Path, *, max_bytes: int = 1 << 40) -> None:
        self.home = home
        self.intake_directory = home / "intake"
        self.key = SigningKey.load(home / "coordinator.pem")
        self.max_bytes = max_bytes
        self.admitted: list[str] = []
        self.received: dict[str, int] = {}
        self.before_admission: Callable[[], None] = lambda: None
        (home / "receipts").mkdir(exist_ok=True)

    def check(self, manifest: Contribution, signed: Signed) -> Signed | None:
        if manifest.charter != CHARTER:
            raise AdmissionRefused(f"saw charter {manifest.charter}, wanted {CHARTER}", reason="wrong-charter")
        if manifest.update_bytes > self.max_bytes:
            raise AdmissionRefused(f"saw {manifest.update_bytes} bytes, wanted fewer", reason="too-large")
        receipt = self._receipt(manifest.digest)
        return Signed.parse(receipt.read_bytes()) if receipt.exists() else None

    def admit(self, signed: Signed, update: Path, received_bytes: int) -> Signed:
        self.before_admission()
        manifest = signed.open(Contribution)
        self.received[manifest.digest] = received_bytes
        with update.open("rb") as file:
            refused = file.read(6) == b"REFUSE"
        if not refused:
            self.admitted.append(file_digest(update))
        return self._decide(manifest.digest, manifest.owner, "refused" if refused else "admitted", received_bytes)

    def withdraw(self, signed: Signed) -> Signed:
        withdrawal = signed.open(Withdrawal)
        return self._decide(withdrawal.contribution, withdrawal.owner, "withdrawn", 0)

    def publication(self, digest: str) -> tuple[Path, str] | None:
        folder = self.home / "published" / hex_of(digest)
        return (folder, "bundle.json") if folder.exists() else None

    def current(self) -> str | None:
        return self.newest

    def enrolled(self, owner: str) -> bool:
        return owner in (self.home / "owners").read_text().split()

    def _receipt(self, digest: str) -> Path:
        return self.home / "receipts" / hex_of(digest)

    def _decide(self, contribution: str, owner: str, status: Any, received_bytes: int) -> Signed:
        receipt = Receipt(
            charter=CHARTER,
            contribution=contribution,
            owner=owner,
            status=status,
            reason="not-finite" if status == "refused" else None,
            message="saw NaN, wanted finite values" if status == "refused" else None,
            received_bytes=received_bytes,
            entry=CHARTER,
            sequence=1,
        )
        signed = seal(receipt, self.key)
        if status == "admitted":
            write_atomically(self._receipt(contribution), signed.canonical())
        return signed


@dataclass
class Site:
    """One coordinator's home, one enrolled owner, and a private authority."""

    home: Path
    port: int
    authority: bytes
    chain: bytes
    private_key: bytes
    coordinator: SigningKey
    owner: SigningKey
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def contribution(self, data: bytes, **changes: Any) -> tuple[Signed, Path]:
        path = self.home / f"{hashlib.sha256(data).hexdigest()[:8]}.bin"
        path.write_bytes(data)
        return self.manifest_of(path, **changes), path

    def manifest_of(self, path: Path, **changes: Any) -> Signed:
        terms = Terms(licence="Apache-2.0")
        record = TrainingRecord(steps=1, tokens=1, documents=1, held_out_documents=1, seed=0, public_share=0.25)
        fields: dict[str, Any] = {
            "charter": CHARTER,
            "anchor": ANCHOR,
            "name": "medicine",
            "owner": self.owner.public,
            "update": file_digest(path),
            "update_bytes": path.stat().st_size,
            "terms": terms,
            "training": record,
            "codec": CodecRecord(method="lossless"),
            "bits_per_byte": {"anchor": 2.0, "expert": 1.5},
        }
        return seal(Contribution(**(fields | changes)), self.owner)

    @contextmanager
    def serving(self, **options: Any) -> Iterator[Rules]:
        rules = Rules(self.home, max_bytes=options.pop("max_bytes", 1 << 40))
        server = serve(
            rules, address=self.address, certificate_chain=self.chain, private_key=self.private_key, **options
        )
        try:
            yield rules
        finally:
            server.stop(0).wait()

    def channel(self, port: int | None = None) -> grpc.Channel:
        return connect(f"127.0.0.1:{port or self.port}", self.authority)

    def upload(self, signed: Signed, path: Path, *, port: int | None = None, **changes: Any) -> UploadOutcome:
        options: dict[str, Any] = {
            "key": self.owner,
            "audience": AUDIENCE,
            "coordinator": self.coordinator.public,
            "patience": IMPATIENT,
        }
        with self.channel(port) as channel:
            return upload(channel, signed=signed, update=path, **(options | changes))

    def spawn(self, role: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, __file__, role, str(self.home)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.processes.append(process)
        if role == "serve":
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


class Proxy:
    """A TCP relay that can be slow, and cuts its first connection after `cut_after` bytes from the client."""

    def __init__(self, target: int, *, cut_after: int | None = None, bytes_per_second: float | None = None) -> None:
        self._target = target
        self._left = cut_after
        self._rate = bytes_per_second
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.bytes_to_server = 0
        self.bytes_to_client = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
                self._start(self._relay, client, server, True)
                self._start(self._relay, server, client, False)

    def _relay(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if upwards:
                    self.bytes_to_server += len(data)
                else:
                    self.bytes_to_client += len(data)
                if self._left is not None and len(data) > 0:
                    self._left -= len(data)
                    if self._left < 0:
                        self._left = None
                        break
                if self._rate:
                    time.sleep(len(data) / self._rate)
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def certificates() -> tuple[bytes, bytes, bytes]:
    """Authority, server chain and server key, PEM."""
    root_key, root = _certificate("motet test authority", None, None)
    leaf_key, leaf = _certificate("localhost", root_key, root)
    pem = serialization.Encoding.PEM
    private = leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return root.public_bytes(pem), leaf.public_bytes(pem), private


def _certificate(
    name: str, issuer_key: ec.EllipticCurvePrivateKey | None, issuer: x509.Certificate | None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return key, builder.sign(issuer_key or key, hashes.SHA256())


@pytest.fixture
def site(tmp_path: Path, certificates: tuple[bytes, bytes, bytes]) -> Iterator[Site]:
    authority, chain, private_key = certificates
    coordinator, owner = SigningKey.generate(), SigningKey.generate()
    coordinator.save(tmp_path / "coordinator.pem")
    owner.save(tmp_path / "owner.pem")
    (tmp_path / "owners").write_text(owner.public)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    described = {"port": port, "authority": authority.decode(), "chain": chain.decode(), "key": private_key.decode()}
    (tmp_path / "site.json").write_text(json.dumps(described))
    site = _site(tmp_path)
    yield site
    site.close()
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def proxy_to() -> type[Proxy]:
    return Proxy


def _site(home: Path) -> Site:
    described = json.loads((home / "site.json").read_text())
    return Site(
        home=home,
        port=described["port"],
        authority=described["authority"].encode(),
        chain=described["chain"].encode(),
        private_key=described["key"].encode(),
        coordinator=SigningKey.load(home / "coordinator.pem"),
        owner=SigningKey.load(home / "owner.pem"),
    )


def _peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _serve_forever(site: Site) -> None:
    with site.serving():
        print("ready", flush=True)  # noqa: T201
        threading.Event().wait()


def _upload_once(site: Site) -> None:
    path = site.home / "update.bin"
    signed = Signed.parse((site.home / "update.json").read_bytes())
    port = int(os.environ.get("MOTET_TEST_PORT", site.port))
    before = _peak_bytes()
    started = time.monotonic()
    outcome = site.upload(signed, path, port=port, patience=SERVER_PATIENCE)
    report = {
        "memory": _peak_bytes() - before,
        "seconds": time.monotonic() - started,
        "sent_bytes": outcome.sent_bytes,
        "receipt": outcome.receipt.canonical().decode(),
    }
    print(json.dumps(report), flush=True)  # noqa: T201


if __name__ == "__main__":
    {"serve": _serve_forever, "upload": _upload_once}[sys.argv[1]](_site(Path(sys.argv[2])))
