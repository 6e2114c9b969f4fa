"""The owner's side of a fetch: a publication's files, resumed, verified, and renamed only when whole.

    folder = fetch(channel, digest=composite_digest, into=Path("composite"), key=key, audience=audience_of(charter))

The manifest is written last: a folder that holds it holds everything it lists.

    data = manifest_of(channel, charter.digest, key=key, audience=audience_of(charter))    # of the newest composite
"""

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import grpc  # type: ignore[import-untyped]

from motet.protocols.canonical import file_digest, hex_of, storage_errors, sync_directory, write_atomically
from motet.protocols.errors import StorageError, TransferBroken, TransferRefused
from motet.protocols.signing import SigningKey
from motet.protocols.transfer import expert_transfer_pb2 as pb2
from motet.protocols.transfer.channel import Caller, Meter, Patience, Progress, persist
from motet.protocols.transfer.expert_transfer_pb2_grpc import ExpertTransferStub
from motet.protocols.transfer.publication import MAX_MANIFEST_BYTES, Listing, PublishedFile, harmless
from motet.protocols.transfer.refusals import understanding
from motet.protocols.transfer.stall import Watchdog

_PART = re.compile(r"\.[0-9a-f]{64}\.part")


def fetch(
    channel: grpc.Channel,
    *,
    digest: str,
    into: Path,
    key: SigningKey,
    audience: str,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Path:
    """Fetch everything that a publication lists into a folder; files that are there already are verified and kept.

    Args:
        digest: the publication's name, the digest of its manifest.
        into: the folder, made if missing.
        progress: called with bytes there and bytes in total.

    Returns:
        `into`, which then holds the manifest and every file it lists.

    Raises:
        TransferRefused: reason "unknown-publication", "unknown-owner", "bad-manifest" or "digest-mismatch".
        TransferBroken: the line broke too often; the same call resumes.
        StorageError: there is no room.
    """
    with storage_errors(into):
        into.mkdir(parents=True, exist_ok=True)
    caller = Caller(stub=ExpertTransferStub(channel), key=key, audience=audience, meter=Meter())
    fetching = _Fetching(caller=caller, digest=digest, into=into, progress=progress or (lambda done, total: None))
    persist(fetching.attempt, reached=lambda: fetching.done, patience=patience or Patience())
    return into


def manifest_of(
    channel: grpc.Channel, subject: str, *, key: SigningKey, audience: str, patience: Patience | None = None
) -> bytes:
    """The manifest of a publication, and nothing else of it.

    Args:
        subject: the publication's digest, or the charter's for the newest composite, whose digest the caller takes
            from what comes.

    Raises:
        TransferRefused, TransferBroken: as `fetch`; reason "unknown-publication" too where no composite is published.
    """
    caller = Caller(stub=ExpertTransferStub(channel), key=key, audience=audience, meter=Meter())
    fetching = _Fetching(caller=caller, digest=subject, into=Path(), progress=lambda done, total: None)
    return persist(lambda: fetching.manifest()[2], reached=lambda: 0, patience=patience or Patience())


@dataclass(kw_only=True, slots=True)
class _Fetching:
    """One fetch through all its attempts.

    Attributes:
        done: bytes that are there, those of unfinished files included.
    """

    caller: Caller
    digest: str
    into: Path
    progress: Progress
    done: int = 0
    _whole: dict[str, int] = field(default_factory=dict, init=False)
    _mismatched: set[str] = field(default_factory=set, init=False)

    def attempt(self) -> None:
        """Open a session and fetch what is missing."""
        session, name, data = self.manifest()
        listing = Listing.of(data, self.digest)
        if any(each.casefold() == name.casefold() for each in listing.files):
            raise _bad_name(name)
        self._prepare(listing)
        for file in listing.files.values():
            if file.name not in self._whole:
                self._fetch_file(session, file, listing.size)
                self._whole[file.name] = file.size
        write_atomically(self.into / name, data)
        self.progress(listing.size, listing.size)

    def manifest(self) -> tuple[str, str, bytes]:
        """Open a session and fetch the manifest: the session, the manifest's name and its bytes."""
        reply = self.caller.begin(pb2.BeginRequest(access=self.caller.access("fetch", self.digest)))
        if not harmless(reply.manifest):
            raise _bad_name(reply.manifest)
        data = b"".join(self._stream(reply.session, reply.manifest, offset=0, size=MAX_MANIFEST_BYTES))
        return reply.session, reply.manifest, data

    def _prepare(self, listing: Listing) -> None:
        """Note the files that are there, forget partial ones of other publications, and see that the rest has room."""
        for file in listing.files.values():
            path = self.into / file.name
            if file.name not in self._whole and _holds(path, file):
                self._whole[file.name] = file.size
        wanted = {_part_name(file) for name, file in listing.files.items() if name not in self._whole}
        parts = {path for path in self.into.iterdir() if _PART.fullmatch(path.name)}
        for path in parts:
            if path.name not in wanted:
                path.unlink()
        there = sum(self._whole.values()) + sum(path.stat().st_size for path in parts if path.name in wanted)
        free = shutil.disk_usage(self.into).free
        if listing.size - there > free:
            raise StorageError(
                f"{self.into}: {free} bytes are free, wanted {listing.size - there}; free space and run the same "
                "command again: what was complete is kept"
            )

    def _fetch_file(self, session: str, file: PublishedFile, total: int) -> None:
        part = self.into / _part_name(file)
        with storage_errors(part), part.open("ab") as sink:
            if sink.tell() > file.size:
                sink.truncate(0)
            self._fill(sink, session, file, total)
            sink.flush()
            os.fsync(sink.fileno())
        if file_digest(part) != file.sha256:
            part.unlink()
            self._reject(file)
        part.replace(self.into / file.name)
        sync_directory(self.into)

    def _fill(self, sink: BinaryIO, session: str, file: PublishedFile, total: int) -> None:
        before = sum(self._whole.values())
        offset = sink.seek(0, os.SEEK_END)
        self._note(before + offset, total)
        if offset == file.size:
            return
        for data in self._stream(session, file.name, offset=offset, size=file.size):
            sink.write(data)
            offset += len(data)
            self._note(before + offset, total)
        if offset != file.size:
            raise TransferBroken(f"saw {offset} of {file.size} bytes of {file.name}; run the same command again")

    def _stream(self, session: str, name: str, *, offset: int, size: int) -> Iterator[bytes]:
        """The bytes of one file from `offset` to its end, never beyond `size`."""
        call = self.caller.stub.Fetch(pb2.FetchRequest(session=session, name=name, offset=offset))
        try:
            with understanding(), Watchdog(call.cancel) as watchdog:
                for chunk in call:
                    watchdog.touch()
                    if chunk.offset != offset or zlib.crc32(chunk.data) != chunk.crc32:
                        raise TransferBroken(f"{name} was damaged on the way at byte {offset}; run the command again")
                    offset += len(chunk.data)
                    if offset > size:
                        raise TransferRefused(
                            f"saw more than {size} bytes of {name}; tell the coordinator", reason="too-large"
                        )
                    yield chunk.data
        finally:
            call.cancel()

    def _note(self, done: int, total: int) -> None:
        self.done = max(self.done, done)
        self.progress(done, total)

    def _reject(self, file: PublishedFile) -> None:
        """Once is a torn partial file of ours, twice is the coordinator's."""
        message = f"{file.name}: saw other content than the manifest's {file.sha256}"
        if file.name in self._mismatched:
            raise TransferRefused(f"{message}, twice; tell the coordinator", reason="digest-mismatch")
        self._mismatched.add(file.name)
        raise TransferBroken(f"{message}; run the same command again")


def _holds(path: Path, file: PublishedFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and file_digest(path) == file.sha256


def _bad_name(name: str) -> TransferRefused:
    return TransferRefused(
        f"the coordinator calls the publication's manifest {name!r}, which is no name for it; tell the coordinator",
        reason="bad-manifest",
    )


def _part_name(file: PublishedFile) -> str:
    """Named by content, so that a partial file of another publication is never continued."""
    return f".{hex_of(file.sha256)}.part"
