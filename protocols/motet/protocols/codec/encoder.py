"""Values -> an update file: two passes over a source, chunk by chunk, in a few threads.

The first pass counts magnitudes, which fixes thresholds and scales for the whole update; the second encodes. A lossless
or block method needs no first pass. Memory is a few chunks, whatever the size of the model.

    source = FileSource(Path("difference.safetensors"))
    encode(Path("update.motetup"), source, source.specs, CodecSettings(method="ternary"), anchor=digest)
    rescale(path, other, factor=2.0)        # the same chunks, every scale doubled: how the owner tunes it
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec import blocks, kernels, planes, sparse
from motet.protocols.codec.changes import all_finite, words_of
from motet.protocols.codec.frames import FrameReader, FrameWriter, copy_with_header
from motet.protocols.codec.header import CHUNK_VALUES, Header, Span, TensorHeader, bytes_of, checked
from motet.protocols.codec.kernels import Kernels
from motet.protocols.codec.pipeline import WORKERS, ordered
from motet.protocols.codec.planning import Plan, Progress, Source, Surveyor, Told, bf16_bits
from motet.protocols.codec.settings import CodecSettings
from motet.protocols.codec.survey import not_finite
from motet.protocols.errors import CodecError
from motet.protocols.tensor_files import TensorReader, TensorSpec


class FileSource:
    """The tensors of a safetensors file. A context manager; raises TensorFileError for a malformed file."""

    def __init__(self, path: Path) -> None:
        self._reader = TensorReader(path)
        self.specs = self._reader.specs

    def read(self, spec: TensorSpec, start: int, count: int) -> NDArray[Any]:
        """See Source."""
        return words_of(self._reader.slice(spec.name, bytes_of(spec, start), bytes_of(spec, count)), spec.dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """An update file that was written: its header, and by which factor scales of the least squared error should be
    larger if nobody tunes them (see `survey.Survey.factor`), whatever factor was taken."""

    header: Header
    factor: float


def encode(
    path: Path,
    source: Source,
    specs: Sequence[TensorSpec],
    settings: CodecSettings,
    *,
    anchor: str,
    base: str | None = None,
    factor: float | None = 1.0,
    chunk_values: int = CHUNK_VALUES,
    paths: Kernels | None = None,
    workers: int = WORKERS,
    on_progress: Progress = lambda done, total: None,
) -> Encoding:
    """Write an update file.

    Args:
        path: the file; it appears whole or not at all.
        source: the differences.
        specs: the tensors, in the order of the file. Those of two dimensions in bf16 take `settings.method`, or any
            of two dimensions a block method; everything else travels unchanged.
        settings: the method and its options.
        anchor: the digest of the anchor that the differences are against.
        base: the digest of the contribution whose expert they are against; None for the anchor itself.
        factor: what every scale of a ternary or levels tensor is multiplied with, as `rescale` does; 1 is the least
            squared error, and None what the survey of the values suggests.
        chunk_values: values in a chunk; another number is another file of the same values.
        paths: numpy or native kernels; the best there is when None. Both write the same bytes.
        workers: threads.
        on_progress: told after every chunk.

    Returns:
        What was written.

    Raises:
        NotFiniteError: a value is NaN or infinite.
        CodecError: a value, a tensor or a digest is none that the format can hold, or a scale leaves its range.
        StorageError: the disk is full.
    """
    survey = Surveyor(
        source=source,
        kernels=paths or kernels.best(sum(math.prod(spec.shape) for spec in specs)),
        chunk_values=chunk_values,
        workers=workers,
        progress=Told(on_progress, specs, settings),
    )
    plans, suggested = survey.plan(specs, settings)
    tensors = tuple(plan.header for plan in plans)
    header = checked(Header, path.name, anchor=anchor, base=base, chunk_values=chunk_values, tensors=tensors)
    header = scaled(header, suggested if factor is None else factor)
    with FrameWriter(path, header) as writer:
        for index, span, payload in _payloads(header, plans, survey):
            writer.write(index, span.number, payload)
            survey.progress.add(span.count)
    return Encoding(header=header, factor=suggested)


def rescale(path: Path, out: Path, factor: float) -> Header:
    """Write the same chunks with every scale of a ternary or levels tensor times `factor`, as float32.

    Raises:
        CodecError: the file is damaged, or a scale leaves its range.
        StorageError: the disk is full.
    """
    with FrameReader(path) as reader:
        header = scaled(reader.header, factor)
        copy_with_header(reader, out, header)
        return header


def scaled(header: Header, factor: float) -> Header:
    """The header with every scale times `factor`. Raises CodecError when one leaves its range."""
    tensors = []
    for tensor in header.tensors:
        options = tensor.model_dump()
        if tensor.scale is not None:
            with np.errstate(over="ignore"):
                options["scale"] = float(np.float32(tensor.scale) * np.float32(factor))
        tensors.append(options)
    try:
        return Header.model_validate(header.model_dump() | {"tensors": tensors})
    except ValueError as error:
        raise CodecError(
            f"saw the factor {factor:g}, which takes a scale out of its range; choose one nearer to 1"
        ) from error


def _payloads(header: Header, plans: Sequence[Plan], survey: Surveyor) -> Iterator[tuple[int, Span, bytes]]:
    """Every chunk in the file's order: its tensor's index, its place, its payload."""

    def work(job: tuple[int, TensorHeader, Span]) -> tuple[int, Span, bytes]:
        index, tensor, span = job
        words = survey.source.read(tensor.spec, span.start, span.count)
        return index, span, _payload(words, span, plans[index], survey.kernels)

    return ordered(work, header.spans(), workers=survey.workers)


def _payload(words: NDArray[Any], span: Span, plan: Plan, chosen: Kernels) -> bytes:
    tensor = plan.header
    if plan.cut is not None:
        return sparse.encode(bf16_bits(words, tensor.dtype), span, plan.cut, tensor, chosen)
    if not all_finite(words, tensor.dtype):
        raise not_finite(tensor.name)
    if tensor.method in ("int8", "int4"):
        return blocks.encode(words, tensor)
    return planes.encode_lossless(words) if tensor.method == "lossless" else planes.encode_raw(words)
