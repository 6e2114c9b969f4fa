"""How the vectors were made: `python tests/vectors/make.py`, from any folder. It only ever adds those that are missing.

A vector NAME is NAME.motetup, the update, and in index.json its `source`, the safetensors file that was encoded; its
`decoded`, the file that it must decode to, in float32; and the digest of each tensor's decoded little-endian float32.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from motet.protocols.codec import CodecSettings, FileSource, UpdateReader, apply, encode
from motet.protocols.codec.frames import FrameReader, FrameWriter
from motet.protocols.codec.numpy_kernels import NumpyKernels
from motet.protocols.tensor_files import TensorSpec, TensorWriter

HERE = Path(__file__).parent
ANCHOR, BASE = "sha256:" + "a" * 64, "sha256:" + "b" * 64
DEFLATE_FREE = ("raw", "int8", "int4")
Tensors = dict[str, tuple[str, np.ndarray]]
"""Name -> dtype and values; bf16 as its bits."""


@dataclass(frozen=True)
class Vector:
    """What a vector holds and how it is encoded."""

    source: str
    settings: CodecSettings
    chunk_values: int = 1 << 10
    base: str | None = None
    decoded: str | None = None
    """The vector that it decodes like."""
    rewrite: Callable[[bytes, int], bytes] | None = None
    """Makes another payload of the same values: what this encoder does not write, yet a decoder must read."""


def noise(seed: int, *shape: int) -> np.ndarray:
    """Differences with heavy tails, from SHA-256 in counter mode: the same with every version of numpy."""
    count = int(np.prod(shape))
    blocks = (hashlib.sha256(f"{seed}/{index}".encode()).digest() for index in range(-(-count // 4)))
    words = np.frombuffer(b"".join(blocks), "<u2").reshape(-1, 4)[:count].astype(np.float64)
    uniform = (words[:, 0] + 0.5) / 65536
    signs = np.where(words[:, 1] < 32768, -1, 1)
    return (signs * 1e-3 * (1 / uniform - 1) ** 0.35).reshape(shape).astype(np.float32)


def bf16(values: np.ndarray) -> np.ndarray:
    """Bits, rounded towards zero."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype("<u2")


def layer(*matrices: np.ndarray) -> Tensors:
    """One layer of an expert: matrices in bf16, a routing row and its bias in float32, a norm in bf16."""
    names = ("gate_proj", "up_proj", "down_proj")
    tensors = {
        f"model.layers.0.mlp.{name}.weight": ("BF16", bf16(values))
        for name, values in zip(names, matrices, strict=False)
    }
    tensors["model.layers.0.mlp.router.weight"] = ("F32", noise(90, 16))
    tensors["model.layers.0.mlp.router.bias"] = ("F32", noise(91, 1))
    tensors["model.layers.0.post_feedforward_layernorm.weight"] = ("BF16", bf16(noise(92, 16)))
    return tensors


def bands() -> np.ndarray:
    """22 rows of large values, 22 of none, and 4 with five large values each."""
    values = noise(20, 48, 64) * 1e-4
    values[::2][:22] = np.sign(values[::2][:22]) * 0.01
    values[44:, 3::13] = 0.02
    return values


def long_gaps() -> np.ndarray:
    """Gaps of 0, 254, 255, 256, 510 and 511 dropped values, in rows longer than a chunk; the last row keeps nothing."""
    values, at = np.zeros((3, 1100), np.float32), -1
    for gap in (0, 254, 255, 256, 0):
        at += gap + 1
        values[0, at] = 0.5 if gap % 2 else -0.25
    values[1, [510, 1022]] = 0.5
    return values


def any_dtype() -> Tensors:
    """Raw values of every dtype, of a shape without dimensions, and of none at all; zeros of both signs, denormals."""
    special = [0.0, -0.0, 1e-45, -1e-39, 3.4e38, 1.0, -2.5, 1 / 3]
    return {
        "bf16": ("BF16", np.array([[0x0000, 0x8000, 0x0001], [0x7F7F, 0xFF7F, 0x3F80]], "<u2")),
        "f16": ("F16", np.array([0.0, -0.0, 65504.0, 6e-8, -1.5], "<f2")),
        "f32": ("F32", np.array(special, "<f4")),
        "scalar": ("F32", np.array(0.125, "<f4")),
        "none": ("BF16", np.zeros((0, 4), "<u2")),
    }


def with_repeats(payload: bytes, _: int) -> bytes:
    """A ternary payload of one band with its gaps or bitmap deflated by a coder that does look for repeats."""
    flags, mode, kept = struct.unpack_from("<BBI", payload)
    at = 6 if mode or not kept else 10
    if flags or not kept:
        return payload
    (size,) = struct.unpack_from("<I", payload, at)
    content = zlib.decompress(payload[at + 4 : at + 4 + size], -15)
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = coder.compress(content[: len(content) // 2]) + coder.flush(zlib.Z_FULL_FLUSH)  # an empty stored block
    packed += coder.compress(content[len(content) // 2 :]) + coder.flush()
    return payload[:at] + struct.pack("<I", len(packed)) + packed + payload[at + 4 + size :]


def always_bitmap(payload: bytes, values: int) -> bytes:
    """A ternary payload of one band of gaps with a bitmap in their place, stored and not coded."""
    flags, mode, kept, gap_bytes, size = struct.unpack_from("<BBIII", payload)
    assert (flags, mode) == (0, 0)
    gaps = zlib.decompress(payload[14 : 14 + size], -15)
    assert len(gaps) == gap_bytes
    positions = np.cumsum(np.frombuffer(gaps, np.uint8).astype(np.int64) + 1) - 1  # no gap here reaches 255
    bits = np.zeros(values, np.uint8)
    bits[positions] = 1
    bitmap = np.packbits(bits, bitorder="little").tobytes()
    stored = struct.pack("<BHH", 1, len(bitmap), len(bitmap) ^ 0xFFFF) + bitmap
    return struct.pack("<BBII", 0, 1, kept, len(stored)) + stored + payload[14 + size :]


SOURCES: dict[str, Callable[[], Tensors]] = {
    "ragged": lambda: layer(noise(1, 43, 40), noise(2, 26, 40)),
    "tiny": lambda: layer(noise(3, 9, 7)),
    "bands": lambda: layer(bands()),
    "long-gaps": lambda: layer(long_gaps()),
    "odd": lambda: layer(noise(6, 79, 13), np.zeros((3, 5))),
    "dtypes": any_dtype,
}
BANDS = (22 * 64 + 20) / (48 * 64)

VECTORS = {
    "ternary-gaps": Vector("ragged", CodecSettings(method="ternary", density=0.05)),
    "ternary-bitmap": Vector("ragged", CodecSettings(method="ternary", density=0.5)),
    "ternary-all": Vector("tiny", CodecSettings(method="ternary", density=1.0)),
    "ternary-class-map": Vector("bands", CodecSettings(method="ternary", density=BANDS), chunk_values=1 << 12),
    "ternary-row-scales": Vector("ragged", CodecSettings(method="ternary", density=0.1, row_scales=True)),
    "ternary-class-map-row-scales": Vector(
        "bands", CodecSettings(method="ternary", density=BANDS, row_scales=True), chunk_values=1 << 12
    ),
    "ternary-long-gaps": Vector("long-gaps", CodecSettings(method="ternary", density=1.0)),
    "ternary-repeats": Vector(
        "ragged", CodecSettings(method="ternary", density=0.05), decoded="ternary-gaps", rewrite=with_repeats
    ),
    "ternary-stored-bitmap": Vector(
        "ragged", CodecSettings(method="ternary", density=0.05), decoded="ternary-gaps", rewrite=always_bitmap
    ),
    "levels-gaps": Vector("ragged", CodecSettings(method="levels", step=4.0)),
    "levels-bitmap": Vector("tiny", CodecSettings(method="levels", step=0.02)),
    "int8": Vector("ragged", CodecSettings(method="int8")),
    "int4-odd": Vector("odd", CodecSettings(method="int4", block=10)),
    "lossless": Vector("ragged", CodecSettings(method="lossless")),
    "lossless-base": Vector("tiny", CodecSettings(method="lossless"), base=BASE),
    "raw": Vector("dtypes", CodecSettings(method="raw")),
}


def specs_of(tensors: Tensors) -> list[TensorSpec]:
    return [TensorSpec(name=name, dtype=dtype, shape=values.shape) for name, (dtype, values) in tensors.items()]


def make(name: str, vector: Vector) -> dict[str, object]:
    """Write a vector's files; returns its entry in the index."""
    source, path = HERE / f"{vector.source}.safetensors", HERE / f"{name}.motetup"
    if not source.exists():
        tensors = SOURCES[vector.source]()
        write(source, {name: values.tobytes() for name, (_, values) in tensors.items()}, specs_of(tensors))
    with FileSource(source) as values:
        specs = values.specs
        encode(
            path,
            values,
            specs,
            vector.settings,
            anchor=ANCHOR,
            base=vector.base,
            chunk_values=vector.chunk_values,
            paths=NumpyKernels(),
        )
    if vector.rewrite is not None:
        rewrite(path, vector.rewrite)
    with UpdateReader(path, paths=NumpyKernels()) as update:
        decoded = {spec.name: update.tensor(spec.name).astype("<f4").tobytes() for spec in specs}
        methods = {tensor.name: tensor.method for tensor in update.header.tensors}
    expected = HERE / f"{vector.decoded or name}.decoded.safetensors"
    if not expected.exists():
        write(expected, decoded, [TensorSpec(name=spec.name, dtype="F32", shape=spec.shape) for spec in specs])
    return {
        "source": source.name,
        "decoded": expected.name,
        "anchor": ANCHOR,
        "base": vector.base,
        "chunk_values": vector.chunk_values,
        "settings": vector.settings.model_dump(mode="json"),
        "written_by_this_encoder": vector.rewrite is None,
        "decoded_sha256": {name: hashlib.sha256(data).hexdigest() for name, data in decoded.items()},
        "payloads_sha256": payload_digests(path, methods),
    }


def payload_digests(path: Path, methods: dict[str, str]) -> dict[str, str]:
    """Of the payloads, one after the other, of the tensors in whose encoding DEFLATE has no part."""
    with FrameReader(path) as reader:
        frames, names = list(reader.copy_frames()), [tensor.name for tensor in reader.header.tensors]
    return {
        name: hashlib.sha256(b"".join(payload for index, _, payload in frames if names[index] == name)).hexdigest()
        for name in names
        if methods[name] in DEFLATE_FREE
    }


def write(path: Path, tensors: dict[str, bytes], specs: Sequence[TensorSpec]) -> None:
    with TensorWriter(path, specs) as writer:
        for name, data in tensors.items():
            writer.write(name, data)


def rewrite(path: Path, change: Callable[[bytes, int], bytes]) -> None:
    """The same file with the payloads of its ternary tensors changed."""
    with FrameReader(path) as reader:
        frames, header = list(reader.copy_frames()), reader.header
    counts = {(index, span.number): span.count for index, _, span in header.spans()}
    with FrameWriter(path, header) as writer:
        for tensor, number, payload in frames:
            ternary = header.tensors[tensor].method == "ternary"
            writer.write(tensor, number, change(payload, counts[tensor, number]) if ternary else payload)


def make_application() -> None:
    """Anchor values, changes in float32, and the expert of both: ties, signed zeros, changes too small to matter."""
    anchor = {
        "BF16": bf16(np.array([1, 1, 1, -1, 1, 0, -0.0, -0.0, 2.0**-126, 1e-40, 256, 257 * 2**100, 3e38, -3])),
        "F16": np.array([1, 1, 1, -1, 1, 0, -0.0, -0.0, 6e-8, 1e-5, 256, 2049, 65504, -3], "<f2"),
        "F32": np.array([1, 1, 1, -1, 1, 0, -0.0, -0.0, 1e-45, 1e-40, 256, 2**24, 3e38, -3], "<f4"),
    }
    changes = np.array(
        [2**-8, 3 * 2**-8, 2**-8 + 2**-20, 2**-8, 2**-30, 0, 0, -0.0, 2.0**-140, 1e-45, -1, 1, -1e3, 3], "<f4"
    )
    specs = [TensorSpec(name=dtype.lower(), dtype=dtype, shape=(14,)) for dtype in anchor]
    changed = [TensorSpec(name=spec.name, dtype="F32", shape=spec.shape) for spec in specs]
    stored = {name.lower(): values.tobytes() for name, values in anchor.items()}
    write(HERE / "application.anchor.safetensors", stored, specs)
    source = HERE / "application.source.safetensors"
    write(source, {spec.name: changes.tobytes() for spec in changed}, changed)
    with FileSource(source) as values:
        encode(HERE / "application.motetup", values, changed, CodecSettings(method="raw"), anchor=ANCHOR)
    with UpdateReader(HERE / "application.motetup") as update:
        parts = apply(update, lambda spec, *_: stored[spec.name], specs)
        made = {spec.name: words.tobytes() for spec, _, words in parts}
    write(HERE / "application.expert.safetensors", made, specs)


def main() -> None:
    index_path = HERE / "index.json"
    index = json.loads(index_path.read_text()) if index_path.exists() else {}
    for name, vector in VECTORS.items():
        if name not in index:
            index[name] = make(name, vector)
    if not (HERE / "application.motetup").exists():
        make_application()
    index_path.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
