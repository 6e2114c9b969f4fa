"""An update file -> changes, and changes -> an expert: chunk by chunk, in a few threads, in bounded memory.

Guarantees: names, dtypes and shapes are those that the reader's caller wants, never the file's own; nothing is
allocated on the word of a count that was not capped, and nothing is decoded before its checksum.

    with UpdateReader(path, wanted=update_specs(manifest), anchor=manifest.digest) as update:
        for spec, start, words in apply(update, stored, expert_specs(manifest)):
            ...                                               # `stored(spec, start, count)`: the anchor's bytes
    verify(path)                                              # everything, footer included
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec import blocks, kernels, planes, sparse
from motet.protocols.codec.changes import Change
from motet.protocols.codec.encoder import scaled
from motet.protocols.codec.frames import FrameReader
from motet.protocols.codec.header import Header, Span, TensorHeader, require_specs
from motet.protocols.codec.kernels import Kernels
from motet.protocols.codec.pipeline import WORKERS, ordered
from motet.protocols.errors import CodecError
from motet.protocols.tensor_files import TensorSpec

Stored = Callable[[TensorSpec, int, int], bytes | bytearray | memoryview]
"""The raw bytes of `count` values of a tensor from the flat index `start` on; a bytearray is taken over and changed.
Called from several threads at once."""


class UpdateReader:
    """An open update file. A context manager; its methods may be called from several threads.

    Args:
        path: the file.
        wanted: what it must hold, in any order: names, dtypes and shapes of the differences. None believes the file,
            which is for looking at it only.
        anchor: the digest of the anchor that it must be against; None takes any.
        base: the digest of the contribution that it must be against, None for the anchor itself; not checked unless
            `anchor` is given.
        factor: every scale is taken times this, as `motet.protocols.codec.rescale` would write it.
        paths: numpy or native kernels; the best there is when None.

    Raises:
        CodecError: says where, what was seen and what was wanted.
    """

    def __init__(
        self,
        path: Path,
        *,
        wanted: Sequence[TensorSpec] | None = None,
        anchor: str | None = None,
        base: str | None = None,
        factor: float = 1.0,
        paths: Kernels | None = None,
    ) -> None:
        self.path = path
        self._frames = FrameReader(path)
        try:
            self._kernels = paths or kernels.best(self._frames.header.values)
            self.header = scaled(self._frames.header, factor) if factor != 1.0 else self._frames.header
            if wanted is not None:
                require_specs(self.header.specs, wanted, where=path.name)
            if anchor is not None:
                _same(f"{path.name}: anchor", self.header.anchor, anchor)
                _same(f"{path.name}: base", self.header.base, base)
        except BaseException:
            self._frames.close()
            raise
        self._index = {tensor.name: index for index, tensor in enumerate(self.header.tensors)}

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """What the file holds, in its order."""
        return self.header.specs

    def payload_bytes(self, name: str) -> int:
        """What a tensor takes in the file, frames included."""
        return self._frames.payload_bytes(self._index[name])

    def change(self, name: str, span: Span) -> Change:
        """One chunk's change, decoded. Raises CodecError."""
        index = self._index[name]
        tensor = self.header.tensors[index]
        where = f"{self.path.name}: {name}, chunk {span.number}"
        return _decode(self._frames.payload(index, span.number, where=where), span, tensor, self._kernels, where)

    def changes(self, name: str, *, workers: int = WORKERS) -> Iterator[Change]:
        """A tensor's changes, chunk after chunk."""
        spans = self.header.tensors[self._index[name]].spans(self.header.chunk_values)
        yield from ordered(lambda span: self.change(name, span), spans, workers=workers)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """One tensor's change, whole in memory: float32, in its shape."""
        parts = [change.values() for change in self.changes(name)]
        shape = self.header.tensors[self._index[name]].shape
        return np.concatenate([np.zeros(0, np.float32), *parts]).reshape(shape)

    def check_footer(self) -> None:
        """Compare the digest of the whole file with its footer. Raises CodecError when they differ."""
        self._frames.check_footer()

    def close(self) -> None:
        """Let go of the file."""
        self._frames.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def apply(
    update: UpdateReader,
    stored: Stored,
    specs: Sequence[TensorSpec],
    *,
    workers: int = WORKERS,
) -> Iterator[tuple[TensorSpec, int, NDArray[Any]]]:
    """Decode and apply, chunk by chunk, in the order of `specs`.

    Args:
        update: the open update.
        stored: what is changed: the anchor's bytes, or an earlier expert's.
        specs: the tensors to make, with the dtypes of what is stored; the update has each of them.
        workers: threads.

    Yields:
        The tensor's spec, the flat index of the first value, and the expert's values: uint16 bits for BF16, else
        floats.

    Raises:
        CodecError: the update is damaged, or a value is not finite.
    """
    by_name = {tensor.name: tensor for tensor in update.header.tensors}
    jobs = ((spec, span) for spec in specs for span in by_name[spec.name].spans(update.header.chunk_values))

    def work(job: tuple[TensorSpec, Span]) -> tuple[TensorSpec, int, NDArray[Any]]:
        spec, span = job
        change = update.change(spec.name, span)
        return spec, span.start, change.add_to(stored(spec, span.start, span.count), spec.dtype)

    yield from ordered(work, jobs, workers=workers)


def verify(
    path: Path,
    *,
    wanted: Sequence[TensorSpec] | None = None,
    anchor: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Header:
    """Read and decode all of a file, for nothing but its soundness. Raises CodecError at the first problem."""
    with UpdateReader(path, wanted=wanted) as update:
        if anchor is not None:
            _same(f"{path.name}: anchor", update.header.anchor, anchor)
        update.check_footer()
        done, total = 0, update.header.values
        for tensor in update.header.tensors:
            for change in update.changes(tensor.name):
                done += change.count
                on_progress(done, total)
        return update.header


def _decode(payload: bytes, span: Span, tensor: TensorHeader, chosen: Kernels, where: str) -> Change:
    match tensor.method:
        case "ternary" | "levels":
            return sparse.decode(payload, span, tensor, chosen, where=where)
        case "int8" | "int4":
            return blocks.decode(payload, span, tensor, where=where)
        case "lossless":
            return planes.decode_lossless(payload, span, tensor, where=where)
        case "raw":
            return planes.decode_raw(payload, span, tensor, where=where)


def _same(where: str, saw: object, wanted: object) -> None:
    if saw != wanted:
        raise CodecError(f"{where}: saw {saw}, wanted {wanted}; fetch or pack the update of that one")
