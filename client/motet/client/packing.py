"""A trained expert becomes a contribution: an update file and its signed manifest, side by side in the outbox.

The update is lossless for now: the bf16 difference to the anchor (`motet.moe.experts`). Guarantees: the figures in the
manifest are those of the expert that the update defines, after rounding; the folder appears whole or not at all; the
newest expert packed again under the same terms is the same contribution, and another one has a higher version.

    packed = pack(trained, material, home)
    packed.digest, packed.update, packed.contribution.bits_per_byte
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from motet.client.devices import arithmetic_of, device_of
from motet.client.owner import OwnerHome, read_signed
from motet.client.preparation import Material
from motet.client.training import TrainedExpert
from motet.moe.experts import read_update, swap_ffn, write_update
from motet.moe.scoring import bits_per_byte, score_windows, windows_of
from motet.protocols.canonical import file_digest, storage_errors, sync_directory, write_atomically
from motet.protocols.container import MANIFEST_NAME, UPDATE_NAME
from motet.protocols.contribution import Contribution
from motet.protocols.errors import ConfigurationError
from motet.protocols.signing import Signed, seal

RECEIPT_NAME = "receipt.json"


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
    """Write, measure, sign, and put into the outbox.

    Raises:
        ExpertError: the trained tensors do not fit the anchor, or are not finite.
        StorageError: the disk is full.
    """
    with storage_errors(home.outbox):
        home.outbox.mkdir(parents=True, exist_ok=True)
    _clear_unfinished(home.outbox)
    folder = Path(tempfile.mkdtemp(prefix=".packing-", dir=home.outbox))
    write_update(folder / UPDATE_NAME, material.anchor, trained.ffn, trained.rows)
    update = file_digest(folder / UPDATE_NAME)
    for newest in packed_contributions(home)[-1:]:
        if _says_the_same(newest.contribution, material, home, update):
            shutil.rmtree(folder)
            return newest
    signed = seal(_manifest(trained, material, home, folder / UPDATE_NAME, update), home.key)
    write_atomically(folder / MANIFEST_NAME, signed.canonical())
    folder.chmod(0o755)
    target = home.contribution(signed.open(Contribution).digest)
    folder.rename(target)
    sync_directory(home.outbox)
    return read_packed(target, owner=home.key.public)


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


def _says_the_same(packed: Contribution, material: Material, home: OwnerHome, update: str) -> bool:
    """Whether a manifest made now would differ in nothing but its version and figures measured anew."""
    saw = (packed.update, packed.charter, packed.name, packed.terms)
    return saw == (update, material.charter, home.config.name, home.config.terms)


def _manifest(trained: TrainedExpert, material: Material, home: OwnerHome, file: Path, update: str) -> Contribution:
    versions = [packed.contribution.version for packed in packed_contributions(home)]
    return Contribution(
        charter=material.charter,
        anchor=material.anchor.digest,
        name=home.config.name,
        owner=home.key.public,
        version=max(versions, default=0) + 1,
        update=update,
        update_bytes=file.stat().st_size,
        terms=home.config.terms,
        training=trained.record,
        bits_per_byte=_measured(material, home, file),
    )


def _measured(material: Material, home: OwnerHome, update: Path) -> dict[str, float]:
    """Bits per byte of the held-out text: under the anchor, and with the expert's networks in place of its own."""
    settings, anchor = home.config.training, material.anchor
    expert = read_update(update, anchor, name=material.name, contribution="")
    stored = next(iter(expert.ffn.values())).dtype
    model = anchor.model(dtype=torch.promote_types(arithmetic_of(settings), stored))
    model.to(device_of(settings))  # type: ignore[arg-type]
    windows = windows_of(
        anchor.tokenizer(),
        material.corpus.held_out,
        sequence_length=settings.sequence_length,
        batch_size=settings.batch_size,
    )
    figures = {"anchor": bits_per_byte(score_windows(model, windows))}
    with swap_ffn(model, expert.ffn):
        figures["expert"] = bits_per_byte(score_windows(model, windows))
    return {row: round(figure, 6) for row, figure in figures.items()}


def _clear_unfinished(outbox: Path) -> None:
    """Remove what a killed worker left half packed."""
    for folder in outbox.glob(".packing-*"):
        shutil.rmtree(folder, ignore_errors=True)
