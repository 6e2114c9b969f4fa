"""A trained expert becomes a contribution: an update file and its signed manifest, side by side in the outbox.

Guarantees: the figures in the manifest are those of the expert that the update defines, after encoding and rounding
(`motet.client.encoding`); the folder appears whole or not at all; the newest expert packed again under the same terms
is the same contribution, and another one has a higher version.

    packed = pack(trained, material, home)
    packed.digest, packed.update, packed.contribution.bits_per_byte
"""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field

from motet.client.encoding import Encoded, Tell, encode_expert
from motet.client.outbox import DRAFT, PROXIES_NAME, Packed, packed_contributions, put
from motet.client.owner import OwnerHome
from motet.client.preparation import Material
from motet.client.proxy_list import NamedProxies, name_proxies, wanted_proxies
from motet.client.training import TrainedExpert
from motet.client.versions import Versions
from motet.moe.lowrank import common_rank
from motet.protocols.canonical import Digest, digest_of, file_digest, storage_errors, write_atomically
from motet.protocols.container import MANIFEST_NAME
from motet.protocols.contribution import Contribution
from motet.protocols.documents import Document
from motet.protocols.errors import StorageError
from motet.protocols.signing import seal

PACKING_NAME = "packing.json"

_log = logging.getLogger(__name__)


class _PackingRecord(Document):
    schema_: Literal["motet.packing/1"] = Field("motet.packing/1", alias="schema")
    key: Digest
    stands_for: Digest | None = None
    """What it was squeezed out of: the fingerprint of a training, or the key of another contribution."""


def pack(
    trained: TrainedExpert,
    material: Material,
    home: OwnerHome,
    *,
    tell: Tell = lambda line: None,
    stands_for: str | None = None,
    draft: bool = False,
) -> Packed:
    """Encode, tune, measure, sign, and put into the outbox.

    Args:
        trained: from training.
        material: what it was trained on.
        home: the owner's home.
        tell: told what comes next, before every evaluation; what it raises ends the packing, and nothing is kept.
        stands_for: what the expert was squeezed out of: `trained.fingerprint`, or `origin_of` a contribution. While it
            is the newest, that is not packed again: a job that comes later would undo the owner's choice.
        draft: whether the owner is still to be asked (`motet.client.outbox.deciding`). A low-rank expert's only: of a
            full one more is kept than its folder.

    Raises:
        ConfigurationError: the charter does not admit the codec's method, or what chooses proxies is not installed.
        DataError: there is less public text than the charter asks proxies of.
        ExpertError, CodecError: the trained tensors do not fit the anchor, or are not finite.
        StorageError: the disk is full.
    """
    key = packing_key(trained, home)
    for newest in packed_contributions(home)[-1:]:
        if _is_the_same(newest, key, material, home) or _stands_for(newest, {key, trained.fingerprint}):
            return newest
    folder = _unfinished(home.outbox)
    named = name_proxies(material, home)
    encoded = encode_expert(trained, material, home, folder, tell=tell)
    manifest = _manifest(trained, material, home, encoded, named)
    _write_papers(folder, manifest, home, _PackingRecord(key=key, stands_for=stands_for), named)
    _keep_version(trained, material, home, encoded, manifest)
    target = home.contribution(manifest.digest)
    return put(folder, target.with_name(f"{DRAFT}{target.name}") if draft else target, home)


def _write_papers(
    folder: Path, manifest: Contribution, home: OwnerHome, record: _PackingRecord, named: NamedProxies | None
) -> None:
    """What lies beside the update: the signed manifest, which leaves with it, and for the owner alone the rest."""
    write_atomically(folder / MANIFEST_NAME, seal(manifest, home.key).canonical())
    write_atomically(folder / PACKING_NAME, record.canonical())
    if named is not None:
        write_atomically(folder / PROXIES_NAME, "\n".join(named.preview).encode())
    folder.chmod(0o755)


def packing_key(trained: TrainedExpert, home: OwnerHome) -> str:
    """Names the trained expert and how it is encoded: packed again, the same is not another version."""
    settings = home.codec_settings(trained.kind).model_dump(mode="json")
    tuning = {"tune": home.config.codec.tune, "successive": home.config.codec.successive}
    named = {"proxies": True} if wanted_proxies(home) else {}
    return digest_of({"schema": "motet.packing/1", "training": trained.fingerprint, "codec": settings | tuning} | named)


def origin_of(packed: Packed) -> str | None:
    """What a contribution was packed from, or squeezed out of if it was; None where that was not noted."""
    path = packed.folder / PACKING_NAME
    record = _PackingRecord.parse(path.read_bytes()) if path.exists() else None
    return None if record is None else record.stands_for or record.key


def _stands_for(packed: Packed, named: set[str]) -> bool:
    path = packed.folder / PACKING_NAME
    return path.exists() and _PackingRecord.parse(path.read_bytes()).stands_for in named


def _is_the_same(packed: Packed, key: str, material: Material, home: OwnerHome) -> bool:
    """Whether packing now would differ in nothing but the version and figures measured anew.

    A contribution whose base the coordinator no longer holds has to be made again, unless it was admitted before.
    """
    path, manifest = packed.folder / PACKING_NAME, packed.contribution
    if not path.exists() or _PackingRecord.parse(path.read_bytes()).key != key:
        return False
    if (manifest.charter, manifest.name, manifest.terms) != (material.charter, home.config.name, home.config.terms):
        return False
    if manifest.base is None or packed.status(home) == "admitted":
        return True
    admitted = Versions.of(home, material.anchor).admitted()
    return admitted is not None and admitted.contribution == manifest.base


def _keep_version(
    trained: TrainedExpert, material: Material, home: OwnerHome, encoded: Encoded, manifest: Contribution
) -> None:
    """Keep what a later version needs of this one; without it, that one travels as the change to the anchor."""
    if trained.kind == "lowrank" or (
        home.config.codec.successive == "never" and home.config.training.start == "anchor"
    ):
        return
    versions = Versions.of(home, material.anchor)
    try:
        versions.keep(manifest, encoded.path, trained.ffn, trained.rows, encoded.previous)
    except StorageError as error:
        _log.warning("the next version will travel as the change to the anchor: %s", error)
        versions.forget(manifest.version)


def _manifest(
    trained: TrainedExpert, material: Material, home: OwnerHome, encoded: Encoded, named: NamedProxies | None
) -> Contribution:
    versions = [packed.contribution.version for packed in packed_contributions(home)]
    return Contribution(
        charter=material.charter,
        anchor=material.anchor.digest,
        name=home.config.name,
        owner=home.key.public,
        version=max(versions, default=0) + 1,
        kind=trained.kind,
        rank=None if trained.factors is None else common_rank(trained.factors),
        base=None if encoded.previous is None else encoded.previous.contribution,
        update=file_digest(encoded.path),
        update_bytes=encoded.path.stat().st_size,
        terms=home.config.terms,
        training=trained.record,
        codec=encoded.record,
        proxies=() if named is None else named.ids,
        bits_per_byte=encoded.bits_per_byte,
    )


def _unfinished(outbox: Path) -> Path:
    """A new folder in the outbox to pack in; what a killed worker left half packed is removed."""
    with storage_errors(outbox):
        outbox.mkdir(parents=True, exist_ok=True)
        for folder in outbox.glob(".packing-*"):
            shutil.rmtree(folder, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=".packing-", dir=outbox))
