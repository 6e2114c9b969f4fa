"""The store of admitted experts: one folder each, named by the contribution's digest.

Guarantees that `expert.safetensors` is there whole or not at all, was made from the update by the definition of an
expert (`motet.moe.experts.materialise_file`) in a child process with capped memory, and that what no ledger entry
speaks of is cleared away, but never under the hands of a process that is admitting.

    store = ExpertStore(home.experts_directory)
    with store.admitting():
        store.materialise(contribution_digest, update, home.path, anchor=charter.anchor.digest)
    store.file_of(contribution_digest)
"""

import json
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from motet.coordinator.inspection import limit_resources, ready, run_child
from motet.protocols.canonical import hex_of, storage_errors, sync_directory
from motet.protocols.errors import AdmissionRefused, FederationError, MotetError, StorageError
from motet.protocols.locks import locked

MEMORY_BYTES = 2 << 30
"""Private memory of the child: about 250 MB are used, nearly all of them by importing torch."""
SECONDS, BYTES_PER_SECOND = 300, 5 << 20

_EXPERT = "expert.safetensors"


class ExpertStore:
    """The folder of materialised experts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = directory.with_name(directory.name + ".lock")
        with storage_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)

    def file_of(self, contribution: str) -> Path:
        """Where a contribution's expert lies, or would lie."""
        return self.directory / hex_of(contribution) / _EXPERT

    def materialise(self, contribution: str, update: Path, home: Path, *, anchor: str) -> Path:
        """Make the store file of an examined update; does nothing if it is there.

        Raises:
            AdmissionRefused: the expert is not finite in the anchor's dtype, or making it met the child's caps.
            StorageError: the disk is full; what is there is kept.
            FederationError: it failed for a reason of ours, such as a damaged anchor.
        """
        target = self.file_of(contribution)
        if target.exists():
            return target
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            sync_directory(self.directory)
        seconds = SECONDS + update.stat().st_size // BYTES_PER_SECOND
        arguments = [str(home), anchor, str(update), str(target)]
        _raise_what_it_says(json.loads(run_child("motet.coordinator.store", arguments, cpu_seconds=seconds)))
        return target

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
    """The update was examined before: of what can still go wrong, only an `ExpertError` is its fault."""
    match answer:
        case {"error": "ExpertError", "message": message}:
            raise AdmissionRefused(f"refused (not-an-expert): {message}", reason="not-an-expert")
        case {"error": "StorageError", "message": message}:
            raise StorageError(message)
        case {"error": kind, "message": message}:
            raise FederationError(
                f"the coordinator could not make the expert ({kind}: {message}); it mends that, then send the "
                "contribution again"
            )


def main() -> None:
    """The child: `home anchor update target`; what went wrong, if anything, as JSON on standard output."""
    home, anchor, update, target = sys.argv[1:]
    limit_resources(memory_bytes=MEMORY_BYTES, seconds=SECONDS + Path(update).stat().st_size // BYTES_PER_SECOND)
    try:
        _materialise(Path(home), anchor, Path(update), Path(target))
    except MotetError as error:
        sys.stdout.write(json.dumps({"error": type(error).__name__, "message": str(error)}))
    else:
        sys.stdout.write("{}")


def _materialise(home: Path, anchor: str, update: Path, target: Path) -> None:
    import torch

    from motet.coordinator.home import unread_anchor
    from motet.moe.experts import materialise_file

    torch.set_num_threads(1)
    read = unread_anchor(home, expect=anchor)
    ready()
    materialise_file(update, read, target)


if __name__ == "__main__":
    main()
