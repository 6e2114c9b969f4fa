"""A contribution as one file, for sites without a connection: an uncompressed tar of two members.

    contribution.json        the signed manifest
    update.motetup           the update, byte for byte

The same contribution always gives the same file: no times, no users, no padding but tar's own. Any tar reads it;
`read_container` believes nothing but exactly these two members with exactly the headers that `write_container`
writes, so links, devices, paths and sparse maps need no rules of their own. Memory stays at one chunk.

    write_container(Path("medicine.motet"), signed, Path("update.motetup"))
    signed = read_manifest(path)                       # cheap: look before unpacking
    signed, update = read_container(path, directory)
"""

import io
import os
import secrets
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from motet.protocols.canonical import CHUNK_BYTES, storage_errors, sync_directory
from motet.protocols.contribution import Contribution
from motet.protocols.documents import MAX_DOCUMENT_BYTES
from motet.protocols.errors import DocumentError
from motet.protocols.signing import Signed

MANIFEST_NAME = "contribution.json"
UPDATE_NAME = "update.motetup"

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)


def write_container(path: Path, signed: Signed, update: Path) -> None:
    """Write a container; it appears complete or not at all, and replaces an older one.

    Raises:
        DocumentError: `signed` is no contribution, or `update` has another size than it says.
        SignatureError: its signature does not hold.
        StorageError: the disk is full or the folder cannot be written.
    """
    wanted = signed.open(Contribution).update_bytes
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with update.open("rb") as source, storage_errors(path):
            size = os.fstat(source.fileno()).st_size
            if size != wanted:
                raise DocumentError(f"{update} has {size} bytes, wanted {wanted} by its manifest; pack it again")
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as target:
                _put(target, MANIFEST_NAME, io.BytesIO(signed.canonical()), len(signed.canonical()))
                _put(target, UPDATE_NAME, source, size)
                target.write(_END)
                target.flush()
                os.fsync(target.fileno())
            temporary.replace(path)
            sync_directory(path.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def read_manifest(path: Path) -> Signed:
    """The signed manifest of a container, its signature checked; the update is not touched.

    Raises:
        DocumentError: it is no container, or its manifest is malformed.
        SignatureError: the manifest's signature does not hold.
    """
    with _opened(path) as file:
        return _manifest(file, path)


def read_container(path: Path, directory: Path) -> tuple[Signed, Path]:
    """Unpack a container: the signed manifest, and the update written to `directory`.

    The update's size is the manifest's; its digest is for admission to check, as with any other way of travel.

    Raises:
        DocumentError: it is no container, holds anything else, or is cut.
        SignatureError: the manifest's signature does not hold.
        StorageError: the disk is full or the directory cannot be written.
    """
    target = directory / UPDATE_NAME
    with _opened(path) as file:
        signed = _manifest(file, path)
        wanted = signed.open(Contribution).update_bytes
        size = _expect(file, path, UPDATE_NAME, limit=wanted)
        if size != wanted:
            raise _damaged(path, f"an update of {size} bytes", f"{wanted} as its manifest says")
        try:
            _unpack(file, path, target, size)
            if file.read(len(_END) + 1) != _END:
                raise _damaged(path, "something after the update", "the end of the file")
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return signed, target


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DocumentError(f"cannot read {path}: {error.strerror}; check the name and its rights") from error


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def _put(target: BinaryIO, name: str, source: BinaryIO, size: int) -> None:
    target.write(_header(name, size))
    left = size
    while left and (chunk := source.read(min(CHUNK_BYTES, left))):
        target.write(chunk)
        left -= len(chunk)
    if left:
        raise DocumentError(f"{name} ended {left} bytes early while being packed; leave it alone and try again")
    target.write(bytes(-size % _BLOCK))


def _manifest(file: BinaryIO, path: Path) -> Signed:
    size = _expect(file, path, MANIFEST_NAME, limit=MAX_DOCUMENT_BYTES)
    signed = Signed.parse(_read(file, path, size))
    _padding(file, path, size)
    signed.open(Contribution)
    return signed


def _expect(file: BinaryIO, path: Path, name: str, *, limit: int) -> int:
    """Read the header of the next member, which must be `name` and nothing special; its size."""
    block = file.read(_BLOCK)
    try:
        size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
    except tarfile.HeaderError as error:
        raise _damaged(path, f"no tar header ({error})", f"a member {name}") from error
    if not 0 <= size <= limit or block != _header(name, size):
        raise _damaged(path, "another member", f"{name} of at most {limit} bytes")
    return size


def _read(file: BinaryIO, path: Path, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _damaged(path, "the file cut", f"{size - len(data)} bytes more")
    return data


def _padding(file: BinaryIO, path: Path, size: int) -> None:
    if any(_read(file, path, -size % _BLOCK)):
        raise _damaged(path, "bytes hidden in tar's padding", "zeros")


def _unpack(file: BinaryIO, path: Path, target: Path, size: int) -> None:
    with storage_errors(target), target.open("xb") as unpacked:
        left = size
        while left:
            chunk = _read(file, path, min(CHUNK_BYTES, left))
            unpacked.write(chunk)
            left -= len(chunk)
        unpacked.flush()
        os.fsync(unpacked.fileno())
    _padding(file, path, size)


def _damaged(path: Path, saw: str, wanted: str) -> DocumentError:
    return DocumentError(
        f"{path} is no container that motet wrote: saw {saw}, wanted {wanted}; "
        "write it again with `motet contribute --to`"
    )
