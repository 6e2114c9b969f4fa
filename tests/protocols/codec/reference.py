"""A second decoder of update files, written from docs/format.md alone: plain loops, nothing of `motet` imported.

The codec is held to it: both refuse a file, or both find the same values.
"""

import hashlib
import json
import math
import re
import struct
import zlib
from typing import Any

import numpy as np

KEYS = {"name", "dtype", "shape", "method", "scale", "row_scales", "block"}
BYTES = {"BF16": 2, "F16": 2, "F32": 4}


class RefusedError(Exception):
    """The file breaks a rule of docs/format.md."""


def need(rule: object, what: str) -> None:
    if not rule:
        raise RefusedError(what)


class Bytes:
    """A byte string read front to back."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        need(self.at + size <= len(self.data), "cut")
        self.at += size
        return self.data[self.at - size : self.at]

    def u8(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return struct.unpack("<I", self.take(4))[0]

    def deflated(self, size: int) -> bytes:
        packed = self.u32()
        need(packed <= size + size // 8 + 64, "long stream")
        return inflate(self.take(packed), size)

    def end(self) -> None:
        need(self.at == len(self.data), "trailing bytes")


def inflate(data: bytes, size: int) -> bytes:
    coder = zlib.decompressobj(-15)
    try:
        found = coder.decompress(data, size + 1)
    except zlib.error as error:
        raise RefusedError("stream") from error
    need(len(found) == size and coder.eof and not coder.unused_data, "stream")
    return found


def decode(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header, and each tensor's change: float32, flat."""
    need(len(data) >= 52, "cut")
    need(hashlib.sha256(data[:-32]).digest() == data[-32:], "footer")
    file = Bytes(data[:-32])
    need(file.take(8) == b"MOTETUP1", "magic")
    inflated, packed, checksum = file.u32(), file.u32(), file.u32()
    need(max(inflated, packed) <= 1 << 20, "header size")
    stream = file.take(packed)
    need(zlib.crc32(stream) == checksum, "header checksum")
    header = read_header(inflate(stream, inflated))
    values = {}
    for index, tensor in enumerate(header["tensors"]):
        parts = [np.zeros(0, np.float32)]
        for number, (rows, columns) in enumerate(chunks(tensor, header["chunk_values"])):
            size, checksum = file.u32(), file.u32()
            payload = file.take(size)
            need(zlib.crc32(struct.pack("<II", index, number) + payload) == checksum, "checksum")
            parts.append(read_chunk(Bytes(payload), tensor, rows, columns))
        values[tensor["name"]] = np.concatenate(parts)
    file.end()
    return header, values


def read_header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode())
        canonical = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        same = canonical.encode() == text
    except (ValueError, RecursionError) as error:
        raise RefusedError("JSON") from error
    need(same and isinstance(header, dict), "canonical JSON")
    need(header.keys() | {"base"} == {"anchor", "base", "chunk_values", "schema", "tensors"}, "keys")
    need(header["schema"] == "motet.update/1", "schema")
    for key in {"anchor", "base"} & header.keys():
        need(isinstance(header[key], str) and re.fullmatch("sha256:[0-9a-f]{64}", header[key]), key)
    need(whole(header["chunk_values"], 1 << 10, 1 << 22), "chunk_values")
    need(isinstance(header["tensors"], list) and len(header["tensors"]) <= 8192, "tensors")
    for tensor in header["tensors"]:
        check_tensor(tensor)
    need(len({tensor["name"] for tensor in header["tensors"]}) == len(header["tensors"]), "names")
    need(sum(len(chunks(tensor, header["chunk_values"])) for tensor in header["tensors"]) <= 1 << 16, "chunks")
    return header


def whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def check_tensor(tensor: Any) -> None:
    need(isinstance(tensor, dict) and {"name", "dtype", "shape", "method"} <= tensor.keys() <= KEYS, "tensor keys")
    name, method, shape = tensor["name"], tensor["method"], tensor["shape"]
    word = "[A-Za-z0-9_][A-Za-z0-9_-]*([.][A-Za-z0-9_-]+)*"
    need(isinstance(name, str) and len(name) <= 512 and re.fullmatch(word, name), "name")
    need(tensor["dtype"] in BYTES, "dtype")
    need(isinstance(shape, list) and len(shape) <= 8 and all(whole(size, 0, 1 << 40) for size in shape), "shape")
    need(math.prod(shape) <= 1 << 40 and (not shape or shape[-1] <= 1 << 22), "shape")
    need(method in ("ternary", "levels", "int8", "int4", "lossless", "raw"), "method")
    need(("scale" in tensor) == (method in ("ternary", "levels")), "scale")
    need(("block" in tensor) == (method in ("int8", "int4")), "block")
    need("row_scales" not in tensor or (tensor["row_scales"] is True and method == "ternary"), "row scales")
    need(method != "lossless" or tensor["dtype"] == "BF16", "lossless")
    if "scale" in tensor:
        scale = tensor["scale"]
        need(type(scale) is float and 0 < scale <= 1e4 and float(np.float32(scale)) == scale, "scale")
    if "block" in tensor:
        need(whole(tensor["block"], 8, 4096), "block")


def chunks(tensor: dict[str, Any], chunk_values: int) -> list[tuple[int, int]] | range:
    """Rows and columns of each chunk; only counted when there are too many."""
    columns = tensor["shape"][-1] if tensor["shape"] else 1
    values = math.prod(tensor["shape"])
    if not values:
        return []
    rows, step = values // columns, max(1, chunk_values // columns)
    if rows // step > 1 << 16:
        return range(rows // step)
    return [(min(step, rows - first), columns) for first in range(0, rows, step)]


def read_chunk(payload: Bytes, tensor: dict[str, Any], rows: int, columns: int) -> np.ndarray:
    count, method = rows * columns, tensor["method"]
    if method in ("ternary", "levels"):
        values = read_sparse(payload, tensor, rows, columns)
    elif method in ("int8", "int4"):
        values = read_blocks(payload, tensor, count)
    elif method == "lossless":
        exponents, rest = payload.deflated(count), payload.take(count)
        bits = [(low >> 7) << 15 | high << 7 | low & 0x7F for high, low in zip(exponents, rest, strict=True)]
        values = [from_bf16(word) for word in bits]
    else:
        data = payload.take(count * BYTES[tensor["dtype"]])
        if tensor["dtype"] == "BF16":
            values = [from_bf16(word) for (word,) in struct.iter_unpack("<H", data)]
        else:
            values = [value for (value,) in struct.iter_unpack({"F16": "<e", "F32": "<f"}[tensor["dtype"]], data)]
    payload.end()
    need(all(map(math.isfinite, values)), "finite")
    return np.array(values, np.float32)


def from_bf16(word: int) -> float:
    return struct.unpack("<f", struct.pack("<I", word << 16))[0]


def read_blocks(payload: Bytes, tensor: dict[str, Any], count: int) -> list[float]:
    scales = [struct.unpack("<H", payload.take(2))[0] for _ in range(-(-count // tensor["block"]))]
    need(all(bits < 0x8000 and 0 <= from_bf16(bits) <= 1e4 for bits in scales), "block scale")
    if tensor["method"] == "int8":
        codes = [(byte ^ 0x80) - 0x80 for byte in payload.take(count)]
    else:
        halves = [half for byte in payload.take(-(-count // 2)) for half in (byte & 15, byte >> 4)]
        need(not any(halves[count:]), "padding")
        codes = [(half ^ 8) - 8 for half in halves[:count]]
    need(min(codes) > (-128 if tensor["method"] == "int8" else -8), "unused code")
    return [
        float(np.float32(code) * np.float32(from_bf16(scales[at // tensor["block"]]))) for at, code in enumerate(codes)
    ]


def read_sparse(payload: Bytes, tensor: dict[str, Any], rows: int, columns: int) -> list[float]:
    flags = payload.u8()
    need(flags < 4 and bool(flags & 1) == ("row_scales" in tensor), "flags")
    row_codes = payload.deflated(rows) if flags & 1 else None
    classes = payload.deflated(rows) if flags & 2 else bytes(rows)
    need(not flags & 2 or len(set(classes)) > 1, "class map")
    values = np.zeros((rows, columns), np.float32)
    keeps = [0] * rows
    for label in sorted(set(classes)):
        members = [row for row in range(rows) if classes[row] == label]
        for position, multiple in read_band(payload, tensor, len(members) * columns):
            row = members[position // columns]
            keeps[row] += 1
            value = multiple * np.float32(tensor["scale"])
            if row_codes is not None:
                value *= np.float32(2 ** ((row_codes[row] - 128) / 16))
            values[row, position % columns] = value
    if flags & 2:
        need(all((kept * kept).bit_length() == label for kept, label in zip(keeps, classes, strict=True)), "class")
    if row_codes is not None:
        need(all((kept > 0) == (code > 0) for kept, code in zip(keeps, row_codes, strict=True)), "row scale")
    return values.reshape(-1).tolist()


def read_band(payload: Bytes, tensor: dict[str, Any], values: int) -> list[tuple[int, np.float32]]:
    mode, kept = payload.u8(), payload.u32()
    need(mode < 2 and kept <= values and (kept or not mode), "band")
    if not kept:
        return []
    positions: list[int] = []
    if mode == 0:
        size, at = payload.u32(), 0
        need(size <= kept + values // 255, "gap bytes")
        gaps = payload.deflated(size)
        for gap in gaps:
            at += gap
            if gap < 255:
                positions.append(at)
                at += 1
        need(gaps and gaps[-1] < 255, "gaps end")
    else:
        bits = bits_of(payload.deflated(-(-values // 8)))
        need(not any(bits[values:]), "padding")
        positions = [at for at, bit in enumerate(bits) if bit]
    need(len(positions) == kept and positions[-1] < values, "positions")
    signs = bits_of(payload.take(-(-kept // 8)))
    need(not any(signs[kept:]), "padding")
    levels = payload.deflated(kept) if tensor["method"] == "levels" else bytes(kept)
    return [
        (at, np.float32(-1 if sign else 1) * np.float32(level + 1))
        for at, sign, level in zip(positions, signs, levels, strict=False)
    ]


def bits_of(data: bytes) -> list[int]:
    return [byte >> bit & 1 for byte in data for bit in range(8)]
