"""A coordinator's home: one folder with its keys, charter, anchor, ledger, experts and composites.

    init(path, name="quickstart", anchor_directory=anchor, public_text=text, addresses=addresses)
    home = CoordinatorHome(path)                 # ConfigurationError unless it holds together
    home.charter, home.key, home.ledger
    home.enrol(signed_join_request)

`charter.signed.json` is what holds; `charter.toml` is there to be read, and must agree. A home is made whole or not
at all. Opening one imports no torch.
"""

import errno
import json
import secrets
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from motet.coordinator.ledger_store import Draft, LedgerStore
from motet.coordinator.tls import TlsFiles, ensure_tls
from motet.protocols.anchor_manifest import AnchorManifest, checkpoint_files, tokenizer_files
from motet.protocols.canonical import file_digest, storage_errors, sync_directory, write_atomically
from motet.protocols.charter import Addresses, AnchorPin, Charter, ExpertRules, RoutingRules, TrainingRules
from motet.protocols.contribution import JoinRequest
from motet.protocols.errors import AdmissionRefused, AnchorError, AnchorMismatch, ConfigurationError, DocumentError
from motet.protocols.ledger import LedgerEntry, Standing
from motet.protocols.signing import Signed, SigningKey, seal
from motet.protocols.split import PUBLIC_SEED, PUBLIC_SHARE, is_held_out
from motet.protocols.transfer.publication import write_bundle

if TYPE_CHECKING:
    from motet.moe.anchor import Anchor

PUBLIC_TEXT_FILE = "public.jsonl"
STATISTICS_FILE = "statistics.safetensors"


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
        return _read_manifest(self.path, self.charter.anchor.digest)

    @cached_property
    def anchor(self) -> "Anchor":
        """The anchor itself, every byte of it read and checked once. Imports torch."""
        from motet.moe.anchor import Anchor

        return Anchor.load(self.anchor_directory, expect=self.charter.anchor.digest)

    def tls(self, hosts: tuple[str, ...] = ()) -> TlsFiles:
        """The TLS files, the server's renewed if need be."""
        return ensure_tls(self.tls_directory, [*_hosts(self.charter.addresses), *hosts])

    def enrol(self, signed: Signed) -> LedgerEntry:
        """Enrol the owner who signed this join request; the same request again changes nothing.

        Raises:
            SignatureError: it is not signed by the owner it names.
            AdmissionRefused: another charter, a name or Flower key that is taken, or an owner enrolled otherwise.
        """
        request = signed.open(JoinRequest, by=signed.open(JoinRequest).owner)
        _check_flower_key(request.flower_key)
        return self.ledger.append(lambda standing: self._enrolment(signed, request, standing))

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

    def _enrolment(self, signed: Signed, request: JoinRequest, standing: Standing) -> Draft | LedgerEntry:
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
            if _flower_key(other.flower_key) == _flower_key(request.flower_key):
                raise _refused("flower-key-taken", f"{other.name} has this Flower key; make a new one and join again")
        return Draft(kind="enrolled", subject=request.owner, body={"signed": _json(signed)})


def unread_anchor(path: Path, *, expect: str) -> "Anchor":
    """The anchor of the home at `path` by its stored manifest, its tensors unread; no key is touched. Imports torch."""
    from motet.moe.anchor import Anchor

    config = json.loads((path / "anchor" / "config.json").read_text(encoding="utf-8"))
    return Anchor(directory=path / "anchor", manifest=_read_manifest(path, expect), config=config)


def _read_manifest(path: Path, expect: str) -> AnchorManifest:
    manifest = AnchorManifest.parse((path / "anchor-manifest.json").read_bytes())
    if manifest.digest != expect:
        raise AnchorMismatch(
            f"saw anchor {manifest.digest} in {path}, wanted {expect}; restore a backup",
            expected=expect,
            actual=manifest.digest,
        )
    return manifest


def init(
    path: Path,
    *,
    name: str,
    anchor_directory: Path,
    public_text: Path,
    addresses: Addresses,
    experts: ExpertRules | None = None,
    routing: RoutingRules | None = None,
    training: TrainingRules | None = None,
    hosts: tuple[str, ...] = (),
) -> Charter:
    """Make a coordinator's home in the new or empty folder `path`, and the charter it runs under.

    Args:
        path: the new home.
        name: what the federation is called.
        anchor_directory: a supported checkpoint with `statistics.safetensors` beside it; copied.
        public_text: JSON lines with a "text" each; copied.
        addresses: where owners reach the coordinator.
        experts, routing, training: the rules; None is their defaults.
        hosts: further names and addresses for the server certificate.

    Raises:
        ConfigurationError: `path` holds something, or the public text is unusable.
        AnchorError, StatisticsError: the anchor or its statistics are.
        StorageError: the disk is full or not writable.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigurationError(f"{path} exists and is not an empty folder; choose another one for the new home")
    rules: _Rules = {
        "experts": experts or ExpertRules(),
        "routing": routing or RoutingRules(),
        "training": training or TrainingRules(),
    }
    building = path.absolute().with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with storage_errors(path):
            building.mkdir(parents=True)
            pin = _publish(building, anchor_directory, public_text)
            charter = _found(building, name, pin, addresses, rules, hosts)
            building.replace(path)
            sync_directory(path.absolute().parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return charter


class _Rules(TypedDict):
    experts: ExpertRules
    routing: RoutingRules
    training: TrainingRules


def _found(
    building: Path, name: str, pin: AnchorPin, addresses: Addresses, rules: _Rules, hosts: tuple[str, ...]
) -> Charter:
    """Make keys, certificates, charter and the ledger's first entry."""
    files = ensure_tls(building / "tls", [*_hosts(addresses), *hosts])
    key = SigningKey.generate()
    key.save(building / "keys" / "coordinator.pem")
    charter = Charter(
        name=name,
        anchor=pin,
        addresses=addresses,
        coordinator=key.public,
        certificate_authority=files.authority.read_text(encoding="ascii"),
        **rules,
    )
    _write_charter(building, charter, key)
    return charter


def _write_charter(building: Path, charter: Charter, key: SigningKey) -> None:
    signed = seal(charter, key)
    write_atomically(building / "charter.toml", charter.to_toml().encode())
    write_atomically(building / "charter.signed.json", signed.canonical())
    with LedgerStore(building / "ledger.sqlite") as ledger:
        ledger.append(lambda _: Draft(kind="charter", subject=charter.digest, body={"signed": _json(signed)}))


def _publish(building: Path, anchor_directory: Path, public_text: Path) -> AnchorPin:
    """Copy what owners will fetch, and list it; nothing else of the anchor's folder is published."""
    from motet.moe.anchor import Anchor

    anchor = Anchor.load(anchor_directory)
    anchor.statistics()
    _check_public_text(public_text)
    target = building / "anchor"
    target.mkdir()
    for source in _published_files(anchor_directory):
        _copy(source, target / source.name)
    _copy(public_text, target / PUBLIC_TEXT_FILE)
    bundle = write_bundle(target)
    write_atomically(building / "anchor-manifest.json", anchor.manifest.canonical())
    return AnchorPin(
        digest=anchor.digest,
        statistics=file_digest(target / STATISTICS_FILE),
        public_text=file_digest(target / PUBLIC_TEXT_FILE),
        bundle=bundle.digest,
    )


def _published_files(directory: Path) -> list[Path]:
    optional = [directory / name for name in ("generation_config.json", "model.safetensors.index.json", "LICENSE")]
    return [
        *checkpoint_files(directory),
        *tokenizer_files(directory),
        directory / "config.json",
        directory / STATISTICS_FILE,
        *(path for path in optional if path.exists()),
    ]


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise AnchorError(f"saw no {source}, wanted it beside the anchor; fetch the anchor again") from error
        raise


def _check_public_text(path: Path) -> None:
    """Both sides of the split must have something, or nobody could train or be scored on it."""
    sides = set()
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                text = json.loads(line)["text"]
                if not isinstance(text, str):
                    raise TypeError(f"line {number} has a text that is none")
                sides.add(is_held_out(text, PUBLIC_SHARE, PUBLIC_SEED))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f'cannot use {path} as public text: {error}; wanted JSON lines, each with a "text"'
        ) from error
    if sides != {True, False}:
        raise ConfigurationError(f"{path} is too small to train on and to hold out; give some dozens of documents")


def _hosts(addresses: Addresses) -> list[str]:
    return [address.rpartition(":")[0] for address in (addresses.data_plane, addresses.flower)]


def _flower_key(line: str) -> str:
    """The key without the comment behind it."""
    return " ".join(line.split()[:2])


def _check_flower_key(line: str) -> None:
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DocumentError(f"the join request's Flower key is no OpenSSH public key: {error}; join again") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise DocumentError("the join request's Flower key is not a P-384 key, which Flower wants; join again")


def _refused(reason: str, message: str) -> AdmissionRefused:
    return AdmissionRefused(f"cannot enrol: {message}", reason=reason)


def _json(signed: Signed) -> dict[str, object]:
    return signed.model_dump(mode="json", by_alias=True)
