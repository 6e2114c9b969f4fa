"""A coordinator's home: one folder with its keys, charter, anchor, ledger, experts and composites.

    home = CoordinatorHome(path)                 # ConfigurationError unless it holds together
    home.charter, home.key, home.ledger
    home.enrol(signed_join_request)

`charter.signed.json` is what holds; `charter.toml` is there to be read, and must agree. `motet.coordinator.founding`
makes a home. Opening one imports no torch.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from motet.coordinator.ledger_store import Draft, LedgerStore
from motet.coordinator.tls import TlsFiles, ensure_tls
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.charter import Addresses, Charter
from motet.protocols.contribution import JoinRequest
from motet.protocols.errors import AdmissionRefused, AnchorMismatch, ConfigurationError, DocumentError
from motet.protocols.ledger import LedgerEntry, Standing
from motet.protocols.signing import Signed, SigningKey

if TYPE_CHECKING:
    from motet.moe.anchor import Anchor

PUBLIC_TEXT_FILE = "public.jsonl"
STATISTICS_FILE = "statistics.safetensors"
PUBLIC_TOKENS_FILE = "public-tokens.npy"


class CoordinatorHome:
    """An existing home. Its properties read on first use; close it, or at least its ledger, at the end."""

    def __init__(self, path: Path) -> None:
        """Open the home at `path`.

        Raises:
            ConfigurationError: there is none, or charter, key and ledger do not belong together.
            SignatureError: the charter's signature does not hold.
        """
        path = path.absolute()
        self.path = path
        self.tls_directory = path / "tls"
        self.anchor_directory = path / "anchor"
        self.anchor_manifest_file = path / "anchor-manifest.json"
        self.public_tokens_file = path / PUBLIC_TOKENS_FILE
        self.intake_directory = path / "intake"
        self.experts_directory = path / "store" / "experts"
        self.composites_directory = path / "composites"
        self.stock_directory = path / "composites-stock"
        self.evaluations_directory = path / "evaluations"
        self.charter, self.key = self._read_charter(), SigningKey.load(self._key_path)
        if self.charter.coordinator != self.key.public:
            raise ConfigurationError(
                f"the charter in {path} is signed by {self.charter.coordinator}, but {self._key_path} is "
                f"{self.key.public}; restore the key from a backup"
            )

    @cached_property
    def ledger(self) -> LedgerStore:
        """The ledger, every entry checked when it is first used; raises LedgerError."""
        ledger = LedgerStore(self.path / "ledger.sqlite")
        if ledger.standing().charter != self.charter.digest:
            saw = ledger.standing().charter
            ledger.close()
            raise ConfigurationError(
                f"the ledger in {self.path} is of charter {saw}, wanted {self.charter.digest}; they belong to "
                "different federations: restore both from one backup"
            )
        return ledger

    @cached_property
    def anchor_manifest(self) -> AnchorManifest:
        """What the anchor is, from the copy whose digest the charter pins: the anchor's files stay unread."""
        return read_anchor_manifest(self.anchor_manifest_file, expect=self.charter.anchor.digest)

    @cached_property
    def anchor(self) -> "Anchor":
        """The anchor itself, every byte of it read and checked once. Imports torch."""
        from motet.moe.anchor import Anchor

        return Anchor.load(self.anchor_directory, expect=self.charter.anchor.digest)

    def tls(self, hosts: tuple[str, ...] = ()) -> TlsFiles:
        """The TLS files, the server's renewed if need be."""
        return ensure_tls(self.tls_directory, [*hosts_of(self.charter.addresses), *hosts])

    def enrol(self, signed: Signed) -> LedgerEntry:
        """Enrol the owner who signed this join request; the same request again changes nothing.

        Raises:
            SignatureError: it is not signed by the owner it names.
            AdmissionRefused: another charter, a name or Flower key that is taken, or an owner enrolled otherwise.
        """
        request = signed.open(JoinRequest, by=signed.open(JoinRequest).owner)
        flower_key = _flower_key(request.flower_key)
        return self.ledger.append(lambda standing: self._enrolment(signed, request, flower_key, standing))

    def close(self) -> None:
        """Let go of the ledger, if it was used."""
        if "ledger" in self.__dict__:
            self.ledger.close()

    @property
    def _key_path(self) -> Path:
        return self.path / "keys" / "coordinator.pem"

    def _read_charter(self) -> Charter:
        signed_path, readable_path = self.path / "charter.signed.json", self.path / "charter.toml"
        try:
            signed = Signed.parse(signed_path.read_bytes())
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {signed_path} ({error.strerror}): {self.path} is no coordinator's home; make one with "
                "`motet init`"
            ) from error
        charter = signed.open(Charter)
        signed.open(Charter, by=charter.coordinator)
        if Charter.from_toml(readable_path) != charter:
            raise ConfigurationError(
                f"{readable_path} differs from the signed charter, which owners have pinned and which holds: undo the "
                "change, or begin a new federation with `motet init`"
            )
        return charter

    def _enrolment(
        self, signed: Signed, request: JoinRequest, flower_key: bytes, standing: Standing
    ) -> Draft | LedgerEntry:
        if request.charter != self.charter.digest:
            raise _refused("wrong-charter", f"saw charter {request.charter}, wanted {self.charter.digest}; join anew")
        before = standing.owners.get(request.owner)
        if before == request and (entry := self.ledger.find("enrolled", request.owner)):
            return entry
        if before is not None:
            raise _refused("already-enrolled", f"{request.owner} is enrolled as {before.name}; join with a new key")
        for other in standing.owners.values():
            if other.name == request.name:
                raise _refused("name-taken", f"another owner is called {request.name}; choose another name")
            if _flower_key(other.flower_key) == flower_key:
                raise _refused("flower-key-taken", f"{other.name} has this Flower key; make a new one and join again")
        return Draft(kind="enrolled", subject=request.owner, body={"signed": signed.as_json()})


def read_anchor_manifest(path: Path, *, expect: str) -> AnchorManifest:
    """An anchor's manifest from a file; raises AnchorMismatch unless its digest is `expect`."""
    manifest = AnchorManifest.parse(path.read_bytes())
    if manifest.digest != expect:
        raise AnchorMismatch(
            f"saw anchor {manifest.digest} in {path}, wanted {expect}; restore a backup",
            expected=expect,
            actual=manifest.digest,
        )
    return manifest


def hosts_of(addresses: Addresses) -> list[str]:
    """The host names in a charter's addresses."""
    return [address.rpartition(":")[0] for address in (addresses.data_plane, addresses.flower)]


def _flower_key(line: str) -> bytes:
    """The key itself: base64 can be written in several ways, and a comment may stand behind it."""
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DocumentError(f"the join request's Flower key is no OpenSSH public key: {error}; join again") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise DocumentError("the join request's Flower key is not a P-384 key, which Flower wants; join again")
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def _refused(reason: str, message: str) -> AdmissionRefused:
    return AdmissionRefused(f"cannot enrol: {message}", reason=reason)
