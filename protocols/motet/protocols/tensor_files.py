"""Safetensors files, written and read one tensor at a time.

Guarantees: a file appears complete (written aside, fsynced, renamed) or not at all; the same specs and bytes give the
same file, byte for byte; a header is believed only after every name, dtype, shape and offset in it was checked, which
the safetensors library itself does not do (it accepts duplicate keys and names such as ``../../etc``). Never more than
one chunk is in memory. Only `TensorReader.tensor` imports torch.

    with TensorReader(source) as reader, TensorWriter(target, reader.specs) as writer:
        for spec in reader.specs:
            writer.write(spec.name, reader.chunks(spec.name))
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from motet.protocols.canonical import WrittenAside, open_regular, storage_errors
from motet.protocols.errors import TensorFileError

if TYPE_CHECKING:
    import torch

DTYPE_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
CHUNK_BYTES = 4 << 20
MAX_HEADER_BYTES = 16 << 20
_METADATA = {"format": "pt"}  # transformers refuses a file that does not say so
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]*(\.[A-Za-z0-9_\-]+)*", re.ASCII)
_MAX_NAME = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One tensor's name, safetensors dtype ("BF16", "F32", ...) and shape. Raises TensorFileError when malformed."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or len(self.name) > _MAX_NAME or not _NAME.fullmatch(self.name):
            raise TensorFileError(
                f"saw tensor name {str(self.name)[:80]!r}, wanted dotted words of letters, digits, _ and -; rename it"
            )
        if self.dtype not in DTYPE_BYTES:
            raise TensorFileError(f"{self.name}: saw dtype {self.dtype!r}, wanted one of {', '.join(DTYPE_BYTES)}")
        if any(type(size) is not int or size < 0 for size in self.shape):
            raise TensorFileError(f"{self.name}: saw shape {self.shape!r}, wanted whole numbers, none negative")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor and where its bytes lie: `offset` counts from the start of the file."""

    spec: TensorSpec
    offset: int


def read_header(path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file in the order of their bytes. Reads the header only.

    Raises TensorFileError for anything but a header whose tensors fill the file without overlap, gap or leftover.
    """
    with _opened(path) as file:
        return _header_of(path, file, max_header_bytes)


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise TensorFileError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from error


def _header_of(path: Path, file: BinaryIO, limit: int) -> dict[str, StoredTensor]:
    try:
        size = os.fstat(file.fileno()).st_size
        return _parse_header(_header_bytes(file, size, limit), size)
    except TensorFileError as error:
        raise TensorFileError(f"{path}: {error}") from error
    except OSError as error:
        raise TensorFileError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from error


def _header_bytes(file: BinaryIO, size: int, limit: int) -> bytes:
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
    if not 2 <= length <= min(limit, size - 8):
        raise TensorFileError(
            f"saw a header of {length} bytes in a file of {size}, wanted 2 to {limit} inside the file; "
            "it is truncated or no safetensors file: fetch it again"
        )
    return file.read(length)


def _parse_header(header: bytes, file_size: int) -> dict[str, StoredTensor]:
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_unique_pairs)
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"saw a header that is no JSON ({error}); fetch the file again") from error
    if not isinstance(entries, dict):
        raise TensorFileError(f"saw a header of type {type(entries).__name__}, wanted an object of tensors")
    entries.pop("__metadata__", None)
    data_start = 8 + len(header)
    spans = sorted((_parse_entry(name, entry) for name, entry in entries.items()), key=lambda span: span[1:])
    stored: dict[str, StoredTensor] = {}
    position = 0
    for spec, start, end in spans:
        if start != position or end - start != spec.nbytes:
            raise TensorFileError(
                f"{spec.name}: saw offsets {start}..{end}, wanted {position}..{position + spec.nbytes}; "
                "tensors must follow each other without overlap or gap"
            )
        stored[spec.name] = StoredTensor(spec=spec, offset=data_start + start)
        position = end
    if data_start + position != file_size:
        raise TensorFileError(
            f"saw a file of {file_size} bytes, wanted {data_start + position} by its header; it is cut or padded"
        )
    return stored


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key occurs twice")
    return unique


def _parse_entry(name: str, entry: object) -> tuple[TensorSpec, int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
            isinstance(entry, dict) and len(entry) == 3
        ):
            return TensorSpec(name=name, dtype=dtype, shape=tuple(shape)), start, end
    raise TensorFileError(f"{name[:80]!r}: saw a malformed entry, wanted exactly dtype, shape and data_offsets")


class TensorReader:
    """An open safetensors file whose header was checked. A context manager.

    Raises TensorFileError as `read_header` does, and for a tensor that the file lacks.
    """

    def __init__(self, path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES) -> None:
        self.path = path
        self._file = _opened(path)
        try:
            self.header = _header_of(path, self._file, max_header_bytes)
        except BaseException:
            self._file.close()
            raise

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """What the file holds, in the order of its bytes."""
        return tuple(stored.spec for stored in self.header.values())

    def chunks(self, name: str, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The raw little-endian bytes of one tensor, at most `size` at a time."""
        stored = self._stored(name)
        position, end = stored.offset, stored.offset + stored.spec.nbytes
        while position < end:
            chunk = os.pread(self._file.fileno(), min(size, end - position), position)
            if not chunk:
                raise self._cut(name)
            position += len(chunk)
            yield chunk

    def slice(self, name: str, start: int, size: int) -> bytes:
        """`size` raw little-endian bytes of one tensor, from its byte `start` on. Safe from several threads."""
        data = os.pread(self._file.fileno(), size, self._place(name, start, size))
        if len(data) != size:
            raise self._cut(name)
        return data

    def slice_into(self, name: str, start: int, target: bytearray) -> None:
        """The same into `target`, as many bytes as it has."""
        if os.preadv(self._file.fileno(), [target], self._place(name, start, len(target))) != len(target):
            raise self._cut(name)

    def _place(self, name: str, start: int, size: int) -> int:
        stored = self._stored(name)
        if not 0 <= start <= start + size <= stored.spec.nbytes:
            raise TensorFileError(
                f"{self.path}: {name}: saw bytes {start} to {start + size} asked for, wanted some of its "
                f"{stored.spec.nbytes}"
            )
        return stored.offset + start

    def _cut(self, name: str) -> TensorFileError:
        return TensorFileError(f"{self.path}: ended inside {name}; it was cut while open, fetch it again")

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in memory of its own, with the dtype that the file gives it."""
        import torch

        spec = self._stored(name).spec
        dtypes = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
        dtypes |= {"I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32"}
        dtypes |= {"U32": "uint32", "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64"}
        dtype: torch.dtype = getattr(torch, dtypes[spec.dtype])
        if spec.nbytes == 0:
            return torch.empty(spec.shape, dtype=dtype)
        buffer = bytearray(spec.nbytes)
        position = 0
        for chunk in self.chunks(name):
            buffer[position : position + len(chunk)] = chunk
            position += len(chunk)
        return torch.frombuffer(buffer, dtype=dtype).reshape(spec.shape)

    def _stored(self, name: str) -> StoredTensor:
        if name not in self.header:
            raise TensorFileError(
                f"{self.path}: saw no tensor {name}; it holds {len(self.header)} others, check the name"
            )
        return self.header[name]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TensorWriter(WrittenAside):
    """Writes a safetensors file whose tensors are known beforehand, each once, in any order. A context manager.

    Bytes are laid out by element size, widest first, then in the order of `specs`, so that every tensor is aligned. The
    file takes its name when the block ends without an error and every tensor was written; else nothing is left behind.
    Raises TensorFileError for bytes that do not match the specs, StorageError for a full or unwritable disk.
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        self._layout, header = _lay_out(specs)
        self._pending = set(self._layout)
        super().__init__(path)
        try:
            with storage_errors(path):
                _reserve(self._file, len(header) + sum(spec.nbytes for spec in specs))
                self._file.write(header)
        except BaseException:
            self._discard()
            raise

    def write(self, name: str, data: bytes | bytearray | memoryview | Iterable[bytes | memoryview]) -> None:
        """Writes one tensor's raw little-endian bytes, whole or as chunks; their sum must match its spec."""
        if name not in self._pending:
            state = "written already" if name in self._layout else "not announced"
            raise TensorFileError(f"{self.path}: {name} was {state}; write each announced tensor once")
        stored = self._layout[name]
        written = 0
        with storage_errors(self.path):
            self._file.seek(stored.offset)
            for chunk in [data] if isinstance(data, bytes | bytearray | memoryview) else data:
                raw = memoryview(chunk).cast("B")
                written += raw.nbytes
                if written <= stored.spec.nbytes:
                    self._file.write(raw)
        if written != stored.spec.nbytes:
            raise TensorFileError(f"{self.path}: {name}: saw {written} bytes, wanted {stored.spec.nbytes}")
        self._pending.remove(name)

    def write_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Writes a torch tensor's bytes; its dtype must be the one announced."""
        import torch

        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        self.write(name, flat.view(torch.uint8).numpy().data)

    def _finish(self) -> None:
        """Raises TensorFileError if a tensor is missing."""
        if self._pending:
            raise TensorFileError(
                f"{self.path}: {len(self._pending)} tensors were not written: {min(self._pending)}, ..."
            )


def _lay_out(specs: Sequence[TensorSpec]) -> tuple[dict[str, StoredTensor], bytes]:
    """Where each tensor goes, and the header (with its length before it) that says so."""
    ordered = sorted(specs, key=lambda spec: -DTYPE_BYTES[spec.dtype])
    entries: dict[str, object] = {"__metadata__": _METADATA}
    position = 0
    for spec in ordered:
        if spec.name in entries:
            raise TensorFileError(f"{spec.name}: announced twice; name each tensor once")
        span = [position, position + spec.nbytes]
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": span}
        position += spec.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    layout: dict[str, StoredTensor] = {}
    offset = 8 + len(text)
    for spec in ordered:
        layout[spec.name] = StoredTensor(spec=spec, offset=offset)
        offset += spec.nbytes
    return layout, struct.pack("<Q", len(text)) + text


def _reserve(file: BinaryIO, size: int) -> None:
    """Claims the room at once, so that a full disk is met before hours of work."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
