"""The outside of an update file: magic, header, one frame for each chunk, and a digest of everything.

    magic             8 bytes  b"MOTETUP1"
    header            u32 inflated size, u32 deflated size, u32 CRC-32 of the deflated bytes; the deflated bytes
    a frame           u32 size, u32 CRC-32 of (u32 tensor index, u32 chunk number, payload); the payload
    footer            32 bytes SHA-256 of everything before

Guarantees: a file appears whole or not at all; a header, a payload and a length are believed only after their checksum
and their cap; frames may be read in any order, from several threads, and a cut file is noticed when it is opened.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from motet.protocols.canonical import CHUNK_BYTES, WrittenAside, open_regular, storage_errors
from motet.protocols.codec.deflate import deflate, inflate, most_deflated
from motet.protocols.codec.header import MAX_HEADER_BYTES, Header, Span, TensorHeader, bytes_of
from motet.protocols.errors import CodecError

MAGIC = b"MOTETUP1"
_HEADER = struct.Struct("<III")
_FRAME = struct.Struct("<II")
_FOOTER = 32
_BANDS = 1 << 14
"""Room for the fields of the most bands that a chunk can have."""


def payload_cap(tensor: TensorHeader, span: Span) -> int:
    """The most bytes that a chunk's payload may take."""
    match tensor.method:
        case "raw":
            return bytes_of(tensor.spec, span.count)
        case "lossless":
            return 4 + most_deflated(span.count) + span.count
        case "int8" | "int4":
            return 2 * -(-span.count // (tensor.block or 1)) + span.count
    positions = span.count + span.count // 255
    return _BANDS + 2 * span.rows + most_deflated(span.rows) + 2 * most_deflated(positions) + span.count // 8


class FrameWriter(WrittenAside):
    """Writes an update file, frame after frame in the header's order. A context manager.

    Raises StorageError when the disk is full; then, and after any error inside the block, no file is left. What a
    process that was killed left, the next writer of the same path removes.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._state = hashlib.sha256()
        super().__init__(path)
        text = header.canonical()
        packed = deflate(text)
        try:
            self._put(MAGIC + _HEADER.pack(len(text), len(packed), zlib.crc32(packed)) + packed)
        except BaseException:
            self._discard()
            raise

    def write(self, tensor: int, number: int, payload: bytes) -> int:
        """Add a chunk's frame; returns its size in the file."""
        head = _FRAME.pack(len(payload), _checksum(tensor, number, payload))
        self._put(head)
        self._put(payload)
        return len(head) + len(payload)

    def _finish(self) -> None:
        """The footer."""
        self._file.write(self._state.digest())

    def _put(self, data: bytes) -> None:
        self._state.update(data)
        with storage_errors(self.path):
            self._file.write(data)


class FrameReader:
    """An open update file whose header was checked and whose frames were found. A context manager.

    Raises CodecError, naming the file and the place, for anything but a whole file of this format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise CodecError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from error
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self.header, self._frames = self._open()
        except BaseException:
            self._file.close()
            raise

    def payload(self, tensor: int, number: int, *, where: str) -> bytes:
        """A chunk's payload, its checksum verified."""
        offset, size = self._frames[tensor][number]
        head, payload = self._at(offset, _FRAME.size, where), self._at(offset + _FRAME.size, size, where)
        if _FRAME.unpack(head) != (size, _checksum(tensor, number, payload)):
            raise CodecError(f"{where}: saw another checksum than the frame says; the file is damaged: fetch it again")
        return payload

    def payload_bytes(self, tensor: int) -> int:
        """What a tensor's frames take in the file."""
        return sum(_FRAME.size + size for _, size in self._frames[tensor])

    def check_footer(self) -> None:
        """Compare the digest of everything with the footer. Raises CodecError when they differ."""
        state, position, end = hashlib.sha256(), 0, self.size - _FOOTER
        while position < end:
            chunk = self._at(position, min(CHUNK_BYTES, end - position), f"{self.path.name}: byte {position}")
            state.update(chunk)
            position += len(chunk)
        if state.digest() != self._at(end, _FOOTER, f"{self.path.name}: footer"):
            raise CodecError(f"{self.path.name}: footer: saw another digest than the file's; fetch it again")

    def copy_frames(self) -> Iterable[tuple[int, int, bytes]]:
        """Every frame in order, verified: tensor index, chunk number, payload."""
        for tensor, frames in enumerate(self._frames):
            for number in range(len(frames)):
                where = f"{self.path.name}: {self.header.tensors[tensor].name}, chunk {number}"
                yield tensor, number, self.payload(tensor, number, where=where)

    def _open(self) -> tuple[Header, list[list[tuple[int, int]]]]:
        name = self.path.name
        if self.size < len(MAGIC) or self._at(0, len(MAGIC), name) != MAGIC:
            raise CodecError(f"{name}: saw no update file of version 1, wanted one that begins with {MAGIC!r}")
        inflated, packed, checksum = _HEADER.unpack(self._at(len(MAGIC), _HEADER.size, f"{name}: header"))
        if max(inflated, packed) > MAX_HEADER_BYTES:
            raise CodecError(f"{name}: header: saw {inflated} bytes, {packed} deflated, wanted {MAX_HEADER_BYTES}")
        start = len(MAGIC) + _HEADER.size
        data = self._at(start, packed, f"{name}: header")
        if zlib.crc32(data) != checksum:
            raise CodecError(f"{name}: header: saw another checksum than it says; the file is damaged: fetch it again")
        header = Header.parse(inflate(data, inflated, where=f"{name}: header"), where=f"{name}: header")
        return header, self._find_frames(header, start + packed)

    def _find_frames(self, header: Header, position: int) -> list[list[tuple[int, int]]]:
        frames: list[list[tuple[int, int]]] = [[] for _ in header.tensors]
        end = self.size - _FOOTER
        for index, tensor, span in header.spans():
            where = f"{self.path.name}: {tensor.name}, chunk {span.number}"
            size, _ = _FRAME.unpack(self._at(position, _FRAME.size, where))
            if size > payload_cap(tensor, span) or position + _FRAME.size + size > end:
                raise CodecError(
                    f"{where}: saw a payload of {size} bytes at byte {position} of {self.size}, wanted at most "
                    f"{payload_cap(tensor, span)} inside the file; it is cut or damaged: fetch it again"
                )
            frames[index].append((position, size))
            position += _FRAME.size + size
        if position != end:
            raise CodecError(
                f"{self.path.name}: footer: saw {self.size - position} bytes after the last chunk, wanted {_FOOTER}; "
                "the file is cut or padded: fetch it again"
            )
        return frames

    def _at(self, offset: int, size: int, where: str) -> bytes:
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise CodecError(
                f"{where}: saw {len(data)} bytes at byte {offset}, wanted {size}; the file is cut: fetch it again"
            )
        return data

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def copy_with_header(source: FrameReader, path: Path, header: Header) -> None:
    """The same chunks under another header of the same tensors. Raises StorageError, and CodecError for damage."""
    with FrameWriter(path, header) as writer:
        for tensor, number, payload in source.copy_frames():
            writer.write(tensor, number, payload)


def _checksum(tensor: int, number: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<II", tensor, number)))
