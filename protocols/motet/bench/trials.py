"""What is measured: the codec's methods and, beside them, what others would do with the same values.

A trial goes both ways through files: `encode` reads the input and writes one, `decode` reads that and the anchor and
makes every chunk of the expert, in two threads, without writing it.

    trial = trial_of(case, kernels)
    trial.prepare(inputs)            # not measured
    trial.encode(inputs, out)
    for words in trial.decode(inputs, out): ...
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from motet.bench.data import ANCHOR, Inputs
from motet.bench.rows import BALANCE, BALANCED, Case
from motet.protocols.codec import (
    CHUNK_VALUES,
    METHODS,
    CodecSettings,
    DenseChange,
    FileSource,
    UpdateReader,
    apply,
    encode,
    entropy_bound,
)
from motet.protocols.codec.changes import SparseChange, narrow, widen
from motet.protocols.codec.kernels import Kernels
from motet.protocols.codec.pipeline import WORKERS, ordered
from motet.protocols.expert_files import StoredTensors
from motet.protocols.tensor_files import TensorSpec, TensorWriter

Words = NDArray[Any]
Part = tuple[TensorSpec, int, bytes]
"""A tensor, the flat index of the first value, and bf16 differences from there on."""

_BLOCK = 4 << 20


class Trial(ABC):
    """One way to carry an update."""

    def prepare(self, inputs: Inputs) -> None:  # noqa: B027 - most need nothing
        """Whatever is needed before, and not measured."""

    @abstractmethod
    def encode(self, inputs: Inputs, out: Path) -> None:
        """The differences as a file, synced to disk."""

    @abstractmethod
    def decode(self, inputs: Inputs, out: Path) -> Iterator[Words]:
        """The file and the anchor as the expert's values, chunk by chunk."""

    def kept(self, out: Path) -> float | None:
        """The share of values in the file that are not zero, where the trial drops some."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecTrial(Trial):
    """One of the codec's own methods."""

    settings: CodecSettings
    kernels: Kernels

    def encode(self, inputs: Inputs, out: Path) -> None:
        """See Trial."""
        with FileSource(inputs.difference) as source:
            encode(out, source, source.specs, self.settings, anchor=ANCHOR, paths=self.kernels)

    def decode(self, inputs: Inputs, out: Path) -> Iterator[Words]:
        """See Trial."""
        with UpdateReader(out, paths=self.kernels) as update, _anchor(inputs) as stored:
            for _, _, words in apply(update, stored, update.specs):
                yield words

    def kept(self, out: Path) -> float | None:
        """See Trial."""
        if self.settings.method != "ternary":
            return None
        kept = 0
        with UpdateReader(out, paths=self.kernels) as update:
            for spec in update.specs:
                for change in update.changes(spec.name):
                    kept += len(change.positions) if isinstance(change, SparseChange) else change.count
            return kept / update.header.values


@dataclass(slots=True, kw_only=True)
class DenseTrial(Trial):
    """What carries dense bf16: the differences themselves, or with a density the ternary update that they give."""

    kernels: Kernels
    density: float | None = None
    share: float | None = None

    def prepare(self, inputs: Inputs) -> None:
        """Make the ternary update, dense; and what it kept."""
        if self.density is None:
            return
        settings = CodecSettings(method="ternary", density=self.density)
        small = inputs.difference.with_name("ternary.motetup")
        ternary = CodecTrial(settings=settings, kernels=self.kernels)
        ternary.encode(inputs, small)
        self.share = ternary.kept(small)
        with UpdateReader(small, paths=self.kernels) as update, TensorWriter(_dense(inputs), update.specs) as writer:
            for spec in update.specs:
                changes = update.changes(spec.name)
                writer.write(spec.name, (narrow(change.values(), "BF16").data for change in changes))
        small.unlink()

    def kept(self, out: Path) -> float | None:
        """See Trial."""
        return self.share

    def source(self, inputs: Inputs) -> FileSource:
        """The dense values."""
        return FileSource(inputs.difference if self.density is None else _dense(inputs))

    def parts(self, inputs: Inputs) -> Iterator[tuple[TensorSpec, int, int]]:
        """Chunks as the codec has them: spec, flat index of the first value, values."""
        with self.source(inputs) as source:
            specs = source.specs
        return (
            (spec, start, min(CHUNK_VALUES, spec.nbytes // 2 - start))
            for spec in specs
            for start in range(0, spec.nbytes // 2, CHUNK_VALUES)
        )


class SafetensorsTrial(DenseTrial):
    """The differences as a safetensors file: no compression at all."""

    def encode(self, inputs: Inputs, out: Path) -> None:
        """See Trial."""
        with self.source(inputs) as source, TensorWriter(out, source.specs) as writer:
            for spec in source.specs:
                reads = (source.read(*part) for part in self.parts(inputs) if part[0] == spec)
                writer.write(spec.name, (words.data for words in reads))

    def decode(self, inputs: Inputs, out: Path) -> Iterator[Words]:
        """See Trial."""
        with FileSource(out) as source:
            parts = ((spec, start, source.read(spec, start, count).data) for spec, start, count in self.parts(inputs))
            yield from _applied(inputs, parts)


class ZstdTrial(DenseTrial):
    """zstd of the dense values at its default level, 3."""

    def encode(self, inputs: Inputs, out: Path) -> None:
        """See Trial."""
        import zstandard

        coder = zstandard.ZstdCompressor(level=3, threads=WORKERS)
        with self.source(inputs) as source, out.open("wb") as file:
            with coder.stream_writer(file, closefd=False) as writer:
                for part in self.parts(inputs):
                    writer.write(source.read(*part).data)
            _sync(file)

    def decode(self, inputs: Inputs, out: Path) -> Iterator[Words]:
        """See Trial."""
        import zstandard

        with out.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_size=_BLOCK) as reader:
            parts = ((spec, start, _exactly(reader, 2 * count)) for spec, start, count in self.parts(inputs))
            yield from _applied(inputs, parts)


class TwoBitTrial(DenseTrial):
    """Four ternary values a byte, each two bits: 0, 1 for plus, 2 for minus; before them a float32 scale a chunk."""

    def encode(self, inputs: Inputs, out: Path) -> None:
        """See Trial."""
        with self.source(inputs) as source, out.open("wb") as file:
            for packed in ordered(lambda part: _two_bits(source.read(*part)), self.parts(inputs)):
                file.write(packed)
            _sync(file)

    def decode(self, inputs: Inputs, out: Path) -> Iterator[Words]:
        """See Trial."""
        with out.open("rb") as file:
            reads = ((spec, start, count, file.read(4 + -(-count // 4))) for spec, start, count in self.parts(inputs))
            with _anchor(inputs) as stored:

                def work(job: tuple[TensorSpec, int, int, bytes]) -> Words:
                    spec, start, count, packed = job
                    return _changed(stored, spec, start, _from_two_bits(packed, count))

                yield from ordered(work, reads)


def trial_of(case: Case, kernels: Kernels) -> Trial:
    """The trial that a case asks for."""
    if case.method in (*METHODS, BALANCED):
        options: dict[str, object] = {"method": "ternary" if case.method == BALANCED else case.method}
        options |= {} if case.density is None else {"density": case.density}
        options |= {"balance": BALANCE} if case.method == BALANCED else {}
        return CodecTrial(settings=CodecSettings.model_validate(options), kernels=kernels)
    if case.method == "zstd-3":
        return ZstdTrial(kernels=kernels, density=case.density)
    if case.method == "2-bit":
        return TwoBitTrial(kernels=kernels, density=case.density)
    return SafetensorsTrial(kernels=kernels, density=case.density)


def bound_of(share: float | None) -> float | None:
    """H(k) + k for what a trial kept."""
    return None if share is None else entropy_bound(share)


def _dense(inputs: Inputs) -> Path:
    return inputs.difference.with_name("ternary.safetensors")


def _anchor(inputs: Inputs) -> StoredTensors:
    with FileSource(inputs.anchor) as source:
        return StoredTensors({spec.name: inputs.anchor for spec in source.specs})


def _applied(inputs: Inputs, parts: Iterator[tuple[TensorSpec, int, Any]]) -> Iterator[Words]:
    """Dense bf16 differences added to the anchor in two threads, in the codec's own arithmetic."""
    with _anchor(inputs) as stored:

        def work(job: tuple[TensorSpec, int, Any]) -> Words:
            spec, start, data = job
            return _changed(stored, spec, start, np.frombuffer(data, np.uint16))

        yield from ordered(work, parts)


def _changed(stored: StoredTensors, spec: TensorSpec, start: int, bits: NDArray[np.uint16]) -> Words:
    def slab(first: int, last: int) -> NDArray[np.float32]:
        return widen(bits[first:last], "BF16")

    change = DenseChange(start=start, count=len(bits), where=spec.name, slab=slab)
    return change.add_to(stored(spec, start, len(bits)), spec.dtype)


def _two_bits(bits: NDArray[np.uint16]) -> bytes:
    """A scale, and two bits a value."""
    largest = (bits & 0x7FFF).max(initial=0)
    codes = np.zeros(-(-len(bits) // 4) * 4, np.uint8)
    codes[: len(bits)] = ((bits & 0x7FFF) != 0) * (1 + (bits >> 15)).astype(np.uint8)
    packed = codes[::4] | codes[1::4] << 2 | codes[2::4] << 4 | codes[3::4] << 6
    return widen(np.array([largest], np.uint16), "BF16").tobytes() + packed.astype(np.uint8).tobytes()


def _from_two_bits(packed: bytes, count: int) -> NDArray[np.uint16]:
    """The bf16 bits that `_two_bits` packed."""
    scale = int(narrow(np.frombuffer(packed, np.float32, 1), "BF16")[0])
    values = np.array([0, scale, scale | 0x8000, 0], np.uint16)
    codes = np.frombuffer(packed, np.uint8, offset=4)
    quads: NDArray[np.uint16] = values[np.arange(256)[:, None] >> np.arange(0, 8, 2) & 3]  # a byte's four values
    bits: NDArray[np.uint16] = quads[codes].reshape(-1)[:count]
    return bits


def _exactly(reader: Any, size: int) -> bytes:  # noqa: ANN401 - zstandard has no types
    """`size` bytes of a stream that has them."""
    found = bytearray()
    while len(found) < size and (part := reader.read(size - len(found))):
        found += part
    return bytes(found)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
