"""The outbox: every contribution that was packed, each in a folder with its manifest, its update and its receipt.

for packed in packed_contributions(home):
    packed.digest, packed.update, packed.status(home)

with deciding(draft, home) as agree:     # a draft is a contribution whose owner has not said yet whether to make it
    packed = agree()                     # without it nothing of the draft is left

A draft lies in a hidden folder, which nothing counts as a contribution; what was killed before its owner decided is
removed with the next draft.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from motet.client.owner import OwnerHome, read_signed
from motet.protocols.canonical import storage_errors, sync_directory
from motet.protocols.container import MANIFEST_NAME, UPDATE_NAME
from motet.protocols.contribution import Contribution
from motet.protocols.errors import ConfigurationError
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed

RECEIPT_NAME = "receipt.json"
PROXIES_NAME = "proxies.txt"
"""What the owner is shown of the proxies that the manifest names."""
DRAFT = ".draft-"
"""How the name of a draft's folder begins."""


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

    def proxies_preview(self) -> list[str]:
        """What the owner is shown of the proxies that this names: nothing if it names none, their ids at the least."""
        path, ids = self.folder / PROXIES_NAME, self.contribution.proxies
        lines = path.read_text(encoding="utf-8").split("\n") if ids and path.exists() else []
        return lines if set(ids) <= {line.partition(" ")[0] for line in lines} else list(ids)

    def verdict(self, home: OwnerHome) -> Receipt | None:
        """What the coordinator said last; None if it said nothing yet.

        Raises:
            SignatureError: the receipt kept is not the coordinator's.
        """
        if not self.receipt.exists():
            return None
        return read_signed(self.receipt, "receipt").open(Receipt, by=home.charter.coordinator)

    def status(self, home: OwnerHome) -> str | None:
        """The verdict in a word: "admitted", "refused", "withdrawn", or None; raises as `verdict` does."""
        verdict = self.verdict(home)
        return None if verdict is None else verdict.status


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


@contextmanager
def deciding(packed: Packed, home: OwnerHome) -> Iterator[Callable[[], Packed]]:
    """While the owner decides; what is yielded puts a draft into the outbox, and one that was not is removed.

    What is no draft stays where it is, agreed to or not. Agreeing raises ConfigurationError when the worker packed
    another version meanwhile, or the draft is gone, and StorageError when the disk is full.
    """
    try:
        yield lambda: _agreed(packed, home)
    finally:
        if _is_draft(packed):
            shutil.rmtree(packed.folder, ignore_errors=True)


def clear_drafts(home: OwnerHome) -> None:
    """Remove the drafts of processes that were killed while their owner decided."""
    for folder in home.outbox.glob(f"{DRAFT}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _is_draft(packed: Packed) -> bool:
    return packed.folder.name.startswith(DRAFT)


def _agreed(packed: Packed, home: OwnerHome) -> Packed:
    if not _is_draft(packed):
        return packed
    newest = max((each.contribution.version for each in packed_contributions(home)), default=0)
    if newest >= packed.contribution.version or not packed.folder.is_dir():
        raise ConfigurationError(
            f"saw version {newest} in {home.outbox}, wanted one before this draft's {packed.contribution.version} and "
            "the draft itself: something else was packed or measured while you decided; run the command again"
        )
    return put(packed.folder, home.contribution(packed.digest), home)


def put(folder: Path, target: Path, home: OwnerHome) -> Packed:
    """Give a whole folder its name in the outbox; raises StorageError, and as `read_packed` does."""
    with storage_errors(target):
        folder.rename(target)
        sync_directory(home.outbox)
    return read_packed(target, owner=home.key.public)


def read_packed(folder: Path, *, owner: str) -> Packed:
    """A folder of the outbox; raises SignatureError or DocumentError when its manifest is not this owner's."""
    signed = read_signed(folder / MANIFEST_NAME, "contribution")
    return Packed(folder=folder, signed=signed, contribution=signed.open(Contribution, by=owner))
