"""The store of admitted experts: one folder each, named by the contribution's digest.

Guarantees that `expert.safetensors` is there whole or not at all, was made from the update by the definition of an
expert (`motet.protocols.expert_files`) in a child process with capped memory, and that what no ledger entry speaks of
is cleared away, but never under the hands of a process that is admitting. A later version that changes an earlier one
is whole by itself once it is made: what becomes of the earlier one does not touch it.

    store = ExpertStore(home.experts_directory)
    with store.admitting():
        store.materialise(contribution, update, home)
    store.file_of(contribution.digest)
"""

import json
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from motet.coordinator.home import CoordinatorHome, read_anchor_manifest
from motet.coordinator.inspection import WORKERS, cpu_seconds, limit_resources, own_faults, ready, run_child
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.canonical import hex_of, storage_errors, sync_directory
from motet.protocols.codec.numpy_kernels import NumpyKernels
from motet.protocols.contribution import Contribution
from motet.protocols.errors import AdmissionRefused, FederationError, MotetError, StorageError
from motet.protocols.expert_files import StoredTensors, materialise_file
from motet.protocols.locks import locked

MEMORY_BYTES = 256 << 20
"""Private memory of the child, which needs numpy and no torch: at most 150 MB at any size of the model."""
SECONDS, BYTES_PER_SECOND = 120, 5 << 20

_EXPERT = "expert.safetensors"


def store_file(directory: Path, contribution: str) -> Path:
    """Where a contribution's expert lies in a store's folder, for whoever only reads it."""
    return directory / hex_of(contribution) / _EXPERT


class ExpertStore:
    """The folder of materialised experts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = directory.with_name(directory.name + ".lock")
        with storage_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)

    def file_of(self, contribution: str) -> Path:
        """Where a contribution's expert lies, or would lie."""
        return store_file(self.directory, contribution)

    def materialise(self, contribution: Contribution, update: Path, home: CoordinatorHome) -> Path:
        """Make the store file of an examined update; does nothing if it is there.

        Raises:
            AdmissionRefused: the expert is not finite in the anchor's dtype, or making it met the child's caps.
            StorageError: the disk is full; what is there is kept.
            FederationError: it failed for a reason of ours, such as a damaged anchor, a base that is not there, or an
                update that is no longer what was examined.
        """
        target = self.file_of(contribution.digest)
        if target.exists():
            return target
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            sync_directory(self.directory)
        manifest, rank = home.anchor_manifest, contribution.rank
        seconds = cpu_seconds(update, manifest, rank, base=SECONDS, bytes_per_second=BYTES_PER_SECOND)
        arguments = [home.anchor_manifest_file, manifest.digest, update, target, rank or 0, seconds]
        arguments += self._changed_by(contribution, home)
        answer = run_child("motet.coordinator.store", [str(each) for each in arguments], cpu_seconds=seconds)
        _raise_what_it_says(json.loads(answer))
        return target

    def _changed_by(self, contribution: Contribution, home: CoordinatorHome) -> list[Path | str]:
        """What an update changes: the anchor's folder, or its base's file and digest."""
        if contribution.base is None:
            return [home.anchor_directory]
        file = self.file_of(contribution.base)
        if not file.exists():
            raise FederationError(
                f"saw no expert of {contribution.base} in the store, wanted it as this update's base; the coordinator "
                "restores it from a backup, or its owner packs against the anchor"
            )
        return [file, contribution.base]

    def remove(self, contribution: str) -> None:
        """Delete a contribution's expert, if it is there."""
        shutil.rmtree(self.file_of(contribution).parent, ignore_errors=True)
        sync_directory(self.directory)

    @contextmanager
    def admitting(self) -> Iterator[None]:
        """While open, in any process, nothing is cleared away."""
        with locked(self._lock, shared=True):
            yield

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody, in any process, is admitting; while open it stays so."""
        try:
            with locked(self._lock, wait=False):
                yield True
        except BlockingIOError:
            yield False

    def clear(self, keep: Collection[str]) -> list[str]:
        """Remove all but these contributions' experts; only while `alone`.

        Returns:
            The hexadecimal names of what was removed.
        """
        kept = {hex_of(contribution) for contribution in keep}
        orphans = [path.name for path in self.directory.iterdir() if path.is_dir() and path.name not in kept]
        for name in orphans:
            shutil.rmtree(self.directory / name, ignore_errors=True)
        return orphans


def _raise_what_it_says(answer: dict[str, str]) -> None:
    """The update was examined before: of what can still go wrong, only a sum that is not finite is its fault."""
    match answer:
        case {"error": "NotFiniteError", "message": message}:
            raise AdmissionRefused(f"refused (not-finite): {message}", reason="not-finite")
        case {"error": "StorageError", "message": message}:
            raise StorageError(message)
        case {"error": kind, "message": message}:
            raise FederationError(
                f"the coordinator could not make the expert ({kind}: {message}); it mends that, then send the "
                "contribution again"
            )


def main() -> None:
    """The child: `manifest anchor update target rank seconds changed [base]`; what went wrong, if anything, as JSON.

    The rank of a full expert is 0.
    """
    manifest, anchor, update, target, rank, seconds, changed, *base = sys.argv[1:]
    limit_resources(memory_bytes=MEMORY_BYTES, seconds=int(seconds))
    try:
        with own_faults():
            known, changes = read_anchor_manifest(Path(manifest), expect=anchor), base[0] if base else None
            _materialise(known, Path(update), Path(target), int(rank) or None, Path(changed), changes)
    except MotetError as error:
        sys.stdout.write(json.dumps({"error": type(error).__name__, "message": str(error)}))
    else:
        sys.stdout.write("{}")


def _materialise(
    manifest: AnchorManifest, update: Path, target: Path, rank: int | None, changed: Path, base: str | None
) -> None:
    opened = StoredTensors.of_anchor(changed) if base is None else StoredTensors.of_expert(changed, manifest)
    with opened as stored:
        for spec in manifest.ffn():
            stored(spec, 0, 0)  # before `ready`: a tensor missing would be our fault
        ready()
        paths = NumpyKernels()
        materialise_file(update, manifest, stored, target, rank=rank, base=base, paths=paths, workers=WORKERS)


if __name__ == "__main__":
    main()
