"""A trained expert becomes a contribution: an update file and its signed manifest, side by side in the outbox.

Guarantees: the figures in the manifest are those of the expert that the update defines, after encoding and rounding
(`motet.client.encoding`); the folder appears whole or not at all; the newest expert packed again under the same terms
is the same contribution, and another one has a higher version.

    packed = pack(trained, material, home)
    packed.digest, packed.update, packed.contribution.bits_per_byte
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from motet.client.encoding import Encoded, encode_expert
from motet.client.owner import OwnerHome, read_signed
from motet.client.preparation import Material
from motet.client.training import TrainedExpert
from motet.client.versions import Versions
from motet.protocols.canonical import Digest, digest_of, file_digest, storage_errors, sync_directory, write_atomically
from motet.protocols.container import MANIFEST_NAME, UPDATE_NAME
from motet.protocols.contribution import Contribution
from motet.protocols.documents import Document
from motet.protocols.errors import ConfigurationError
from motet.protocols.signing import Signed, seal

RECEIPT_NAME = "receipt.json"
PACKING_NAME = "packing.json"


class _PackingRecord(Document):
    schema_: Literal["motet.packing/1"] = Field("motet.packing/1", alias="schema")
    key: Digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A contribution in the outbox."""

    folder: Path
    signed: Signed
    contribution: Contribution

    @property
    def digest(self) -> str:
        """The contribution's name."""
        return self.contribution.digest

    @property
    def update(self) -> Path:
        """The update's file."""
        return self.folder / UPDATE_NAME

    @property
    def receipt(self) -> Path:
        """Where the coordinator's receipt is kept once there is one."""
        return self.folder / RECEIPT_NAME


def pack(trained: TrainedExpert, material: Material, home: OwnerHome) -> Packed:
    """Encode, tune, measure, sign, and put into the outbox.

    Raises:
        ConfigurationError: the charter does not admit the codec's method.
        ExpertError, CodecError: the trained tensors do not fit the anchor, or are not finite.
        StorageError: the disk is full.
    """
    key = packing_key(trained, home)
    for newest in packed_contributions(home)[-1:]:
        if _is_the_same(newest, key, material, home):
            return newest
    with storage_errors(home.outbox):
        home.outbox.mkdir(parents=True, exist_ok=True)
    _clear_unfinished(home.outbox)
    folder = Path(tempfile.mkdtemp(prefix=".packing-", dir=home.outbox))
    encoded = encode_expert(trained, material, home, folder)
    manifest = _manifest(trained, material, home, encoded)
    signed = seal(manifest, home.key)
    write_atomically(folder / MANIFEST_NAME, signed.canonical())
    write_atomically(folder / PACKING_NAME, _PackingRecord(key=key).canonical())
    folder.chmod(0o755)
    target = home.contribution(manifest.digest)
    versions = Versions.of(home, material.anchor)
    versions.keep(manifest, encoded.path, trained.ffn, trained.rows, encoded.previous)
    folder.rename(target)
    sync_directory(home.outbox)
    return read_packed(target, owner=home.key.public)


def packing_key(trained: TrainedExpert, home: OwnerHome) -> str:
    """Names the trained expert and how it is encoded: packed again, the same is not another version."""
    settings = home.config.codec.settings(home.charter.codec).model_dump(mode="json")
    tuning = {"tune": home.config.codec.tune, "successive": home.config.codec.successive}
    return digest_of({"schema": "motet.packing/1", "training": trained.fingerprint, "codec": settings | tuning})


def packed_contributions(home: OwnerHome) -> list[Packed]:
    """Everything in the outbox, the oldest version first."""
    folders = [path.parent for path in home.outbox.glob(f"[0-9a-f]*/{MANIFEST_NAME}")]
    found = [read_packed(folder, owner=home.key.public) for folder in folders]
    return sorted(found, key=lambda packed: packed.contribution.version)


def find_packed(home: OwnerHome, digest: str | None = None) -> Packed:
    """One contribution of the outbox, by its digest; None takes the newest.

    Raises:
        ConfigurationError: there is none.
    """
    for packed in reversed(packed_contributions(home)):
        if digest in (None, packed.digest):
            return packed
    what = "a contribution" if digest is None else f"the contribution {digest}"
    raise ConfigurationError(f"saw no sign of {what} in {home.outbox}; make one with `motet train`")


def read_packed(folder: Path, *, owner: str) -> Packed:
    """A folder of the outbox; raises SignatureError or DocumentError when its manifest is not this owner's."""
    signed = read_signed(folder / MANIFEST_NAME, "contribution")
    return Packed(folder=folder, signed=signed, contribution=signed.open(Contribution, by=owner))


def _is_the_same(packed: Packed, key: str, material: Material, home: OwnerHome) -> bool:
    """Whether packing now would differ in nothing but the version and figures measured anew."""
    path = packed.folder / PACKING_NAME
    if not path.exists() or _PackingRecord.parse(path.read_bytes()).key != key:
        return False
    saw = (packed.contribution.charter, packed.contribution.name, packed.contribution.terms)
    return saw == (material.charter, home.config.name, home.config.terms)


def _manifest(trained: TrainedExpert, material: Material, home: OwnerHome, encoded: Encoded) -> Contribution:
    versions = [packed.contribution.version for packed in packed_contributions(home)]
    return Contribution(
        charter=material.charter,
        anchor=material.anchor.digest,
        name=home.config.name,
        owner=home.key.public,
        version=max(versions, default=0) + 1,
        base=None if encoded.previous is None else encoded.previous.contribution,
        update=file_digest(encoded.path),
        update_bytes=encoded.path.stat().st_size,
        terms=home.config.terms,
        training=trained.record,
        codec=encoded.record,
        bits_per_byte=encoded.bits_per_byte,
    )


def _clear_unfinished(outbox: Path) -> None:
    """Remove what a killed worker left half packed."""
    for folder in outbox.glob(".packing-*"):
        shutil.rmtree(folder, ignore_errors=True)
