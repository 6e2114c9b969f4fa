"""Update files taken apart and put together again with something changed in them, checksums and footer made right."""

import hashlib
import json
import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any

from .reference import BYTES, Bytes, chunks, inflate


def deflate(data: bytes, level: int = 9, strategy: int = zlib.Z_HUFFMAN_ONLY) -> bytes:
    coder = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    return coder.compress(data) + coder.flush()


def sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def canonical(header: Any) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True)
class Frame:
    """A chunk's frame; `check` as the writer meant it when the checksum is right."""

    tensor: int
    number: int
    payload: bytes

    def bytes(self) -> bytes:
        return struct.pack("<II", len(self.payload), self.checksum()) + self.payload

    def checksum(self) -> int:
        return zlib.crc32(struct.pack("<II", self.tensor, self.number) + self.payload)


@dataclass(frozen=True)
class Parts:
    """A file: the header's JSON, and its frames in order."""

    text: bytes
    frames: tuple[Frame, ...]

    @property
    def header(self) -> Any:
        return json.loads(self.text)

    def with_header(self, **changed: Any) -> "Parts":
        return replace(self, text=canonical(self.header | changed))

    def with_tensor(self, index: int, **changed: Any) -> "Parts":
        tensors = self.header["tensors"]
        tensors[index] = {key: value for key, value in (tensors[index] | changed).items() if value is not None}
        return self.with_header(tensors=tensors)

    def with_payload(self, at: int, payload: bytes) -> "Parts":
        frames = list(self.frames)
        frames[at] = replace(frames[at], payload=payload)
        return replace(self, frames=tuple(frames))

    def build(self) -> bytes:
        return file_of(self.text, [frame.bytes() for frame in self.frames])


def head_of(text: bytes) -> bytes:
    packed = deflate(text)
    return b"MOTETUP1" + struct.pack("<III", len(text), len(packed), zlib.crc32(packed)) + packed


def signed(body: bytes) -> bytes:
    """The body and its footer."""
    return body + hashlib.sha256(body).digest()


def file_of(text: bytes, frames: list[bytes]) -> bytes:
    return signed(head_of(text) + b"".join(frames))


def take_apart(data: bytes) -> Parts:
    """A sound file's parts."""
    file = Bytes(data[:-32])
    file.take(8)
    inflated, packed, _ = file.u32(), file.u32(), file.u32()
    text = inflate(file.take(packed), inflated)
    header, frames = json.loads(text), []
    for index, tensor in enumerate(header["tensors"]):
        for number in range(len(chunks(tensor, header["chunk_values"]))):
            size, _ = file.u32(), file.u32()
            frames.append(Frame(tensor=index, number=number, payload=file.take(size)))
    file.end()
    return Parts(text=text, frames=tuple(frames))


@dataclass(frozen=True)
class Field:
    """A field of a payload; a deflated section is one field, `content` what it inflates to."""

    name: str
    data: bytes
    content: bytes | None = None

    def changed(self, content: bytes) -> bytes:
        """The field with other content."""
        return content if self.content is None else sized(deflate(content))


def fields(parts: Parts, at: int) -> list[Field]:
    """The fields of a sound payload, which joined are the payload."""
    frame = parts.frames[at]
    tensor = parts.header["tensors"][frame.tensor]
    rows, columns = list(chunks(tensor, parts.header["chunk_values"]))[frame.number]
    payload, count, found = Bytes(frame.payload), rows * columns, []

    def plain(name: str, size: int) -> bytes:
        found.append(Field(name, payload.take(size)))
        return found[-1].data

    def deflated(name: str, size: int) -> bytes:
        start = payload.at
        content = payload.deflated(size)
        found.append(Field(name, payload.data[start : payload.at], content))
        return content

    match tensor["method"]:
        case "raw":
            plain("values", count * BYTES[tensor["dtype"]])
        case "lossless":
            deflated("exponents", count)
            plain("mantissas", count)
        case "int8" | "int4":
            plain("scales", 2 * -(-count // tensor["block"]))
            plain("codes", count if tensor["method"] == "int8" else -(-count // 2))
        case method:
            flags = plain("flags", 1)[0]
            if flags & 1:
                deflated("row scales", rows)
            classes = deflated("class map", rows) if flags & 2 else bytes(rows)
            for label in sorted(set(classes)):
                mode, kept = plain("mode", 1)[0], struct.unpack("<I", plain("kept values", 4))[0]
                if not kept:
                    continue
                values = classes.count(label) * columns
                size = -(-values // 8) if mode else struct.unpack("<I", plain("gap bytes", 4))[0]
                deflated("bitmap" if mode else "gaps", size)
                plain("signs", -(-kept // 8))
                if method == "levels":
                    deflated("levels", kept)
    payload.end()
    assert b"".join(field.data for field in found) == frame.payload
    return found
