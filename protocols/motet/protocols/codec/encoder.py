"""Values -> an update file: two passes over a source, chunk by chunk, in a few threads.

The first pass counts magnitudes, which fixes thresholds and scales for the whole update; the second encodes. A lossless
or block method needs no first pass. Memory is a few chunks, whatever the size of the model.

    source = FileSource(Path("difference.safetensors"))
    encode(Path("update.motet-update"), source, source.specs, CodecSettings(method="ternary"), anchor=digest)
    rescale(path, other, factor=2.0)        # the same chunks, every scale doubled: how the owner tunes it
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec import blocks, kernels, planes, sparse, survey
from motet.protocols.codec.changes import all_finite, narrow, widen, words_of
from motet.protocols.codec.frames import FrameReader, FrameWriter, copy_with_header
from motet.protocols.codec.header import CHUNK_VALUES, Header, Span, TensorHeader, bytes_of
from motet.protocols.codec.kernels import Kernels
from motet.protocols.codec.pipeline import WORKERS, ordered
from motet.protocols.codec.settings import CodecSettings
from motet.protocols.errors import CodecError
from motet.protocols.tensor_files import TensorReader, TensorSpec

Progress = Callable[[int, int], None]
"""Told how many values are done, of how many; an update that is surveyed first has twice its values to do."""


class Source(Protocol):
    """Where the differences come from. Called from several threads at once."""

    def read(self, spec: TensorSpec, start: int, count: int) -> NDArray[Any]:
        """`count` values from the flat index `start` on: uint16 bits for BF16, else floats."""


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
class _Plan:
    """How one tensor is encoded: its header, and for sparse methods which values are kept."""

    header: TensorHeader
    cut: sparse.Cut | None = None


def encode(
    path: Path,
    source: Source,
    specs: Sequence[TensorSpec],
    settings: CodecSettings,
    *,
    anchor: str,
    base: str | None = None,
    chunk_values: int = CHUNK_VALUES,
    paths: Kernels | None = None,
    workers: int = WORKERS,
    on_progress: Progress = lambda done, total: None,
) -> Header:
    """Write an update file.

    Args:
        path: the file; it appears whole or not at all.
        source: the differences.
        specs: the tensors, in the order of the file. Those of two dimensions in bf16 take `settings.method`, or any
            of two dimensions a block method; everything else travels unchanged.
        settings: the method and its options.
        anchor: the digest of the anchor that the differences are against.
        base: the digest of the contribution whose expert they are against; None for the anchor itself.
        chunk_values: values in a chunk; another number is another file of the same values.
        paths: numpy or native kernels; the best there is when None. Both write the same bytes.
        workers: threads.
        on_progress: told after every chunk.

    Returns:
        The header written.

    Raises:
        CodecError: a value is NaN or infinite, or a tensor is too large for the format.
        StorageError: the disk is full.
    """
    chosen = paths or kernels.best()
    told = _Told(on_progress, specs, settings)
    plans = _plan(source, specs, settings, chosen, chunk_values, workers, told)
    header = Header(anchor=anchor, base=base, chunk_values=chunk_values, tensors=tuple(plan.header for plan in plans))

    def work(job: tuple[int, TensorHeader, Span]) -> tuple[int, Span, bytes]:
        index, tensor, span = job
        words = source.read(tensor.spec, span.start, span.count)
        return index, span, _payload(words, span, plans[index], chosen)

    with FrameWriter(path, header) as writer:
        for index, span, payload in ordered(work, header.spans(), workers=workers):
            writer.write(index, span.number, payload)
            told.add(span.count)
    return header


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


class _Told:
    """Adds up progress."""

    def __init__(self, tell: Progress, specs: Sequence[TensorSpec], settings: CodecSettings) -> None:
        self._tell, self._done = tell, 0
        surveyed = [spec for spec in specs if settings.surveyed and _takes_method(spec, settings)]
        self._total = sum(math.prod(spec.shape) for spec in (*specs, *surveyed))

    def add(self, values: int) -> None:
        self._done += values
        self._tell(self._done, self._total)


def _plan(
    source: Source,
    specs: Sequence[TensorSpec],
    settings: CodecSettings,
    chosen: Kernels,
    chunk_values: int,
    workers: int,
    told: _Told,
) -> list[_Plan]:
    plain = {spec.name: _Plan(header=_plain(spec, settings)) for spec in specs}
    sparse_specs = [spec for spec in specs if _takes_method(spec, settings)]
    if not settings.surveyed:
        return [plain[spec.name] for spec in specs]
    headers = [_plain(spec, settings.model_copy(update={"method": "raw"})) for spec in sparse_specs]
    histograms = _histograms(source, headers, chosen, chunk_values, workers, told)
    if settings.method == "ternary":
        choices = survey.ternary(histograms, settings.density)
    else:
        choices = survey.levels(histograms, settings.step)
    for spec, choice in zip(sparse_specs, choices, strict=True):
        header = TensorHeader(
            **_fields(spec),
            method=settings.method,
            scale=choice.scale,
            row_scales=(settings.method == "ternary" and settings.row_scales) or None,
        )
        plain[spec.name] = _Plan(header=header, cut=choice.cut)
    return [plain[spec.name] for spec in specs]


def _histograms(
    source: Source,
    tensors: Sequence[TensorHeader],
    chosen: Kernels,
    chunk_values: int,
    workers: int,
    told: _Told,
) -> list[survey.Histogram]:
    def count(job: tuple[TensorHeader, Span]) -> tuple[Span, NDArray[np.int64]]:
        tensor, span = job
        return span, chosen.histogram(_bits(source.read(tensor.spec, span.start, span.count), tensor.dtype))

    found = []
    for tensor in tensors:
        dense = np.zeros(survey.MAGNITUDES, np.int64)
        for span, part in ordered(count, ((tensor, span) for span in tensor.spans(chunk_values)), workers=workers):
            dense += part
            told.add(span.count)
        found.append(survey.Histogram.of(tensor.name, dense))
    return found


def _takes_method(spec: TensorSpec, settings: CodecSettings) -> bool:
    """Routing rows are float32 of one dimension, norms have one dimension: both stay lossless."""
    return len(spec.shape) == 2 and (spec.dtype == "BF16" or settings.method in ("int8", "int4"))


def _plain(spec: TensorSpec, settings: CodecSettings) -> TensorHeader:
    """The header of a tensor that needs no survey."""
    fields = _fields(spec)
    if _takes_method(spec, settings) and settings.method in ("int8", "int4"):
        return TensorHeader(**fields, method=settings.method, block=settings.block)
    if spec.dtype == "BF16" and settings.method != "raw":
        return TensorHeader(**fields, method="lossless")
    return TensorHeader(**fields, method="raw")


def _fields(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": spec.shape}


def _payload(words: NDArray[Any], span: Span, plan: _Plan, chosen: Kernels) -> bytes:
    tensor = plan.header
    if plan.cut is not None:
        return sparse.encode(_bits(words, tensor.dtype), span, plan.cut, tensor, chosen)
    if not all_finite(words, tensor.dtype):
        raise CodecError(
            f"{tensor.name}: saw NaN or infinity, wanted finite values only; look for a diverged loss, train again"
        )
    if tensor.method in ("int8", "int4"):
        return blocks.encode(words, tensor)
    return planes.encode_lossless(words) if tensor.method == "lossless" else planes.encode_raw(words)


def _bits(words: NDArray[Any], dtype: str) -> NDArray[np.uint16]:
    """Differences as bf16 bits."""
    return words if dtype == "BF16" else narrow(widen(words, dtype), "BF16").view(np.uint16)
