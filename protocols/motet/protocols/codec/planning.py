"""How each tensor of an update will be encoded, found in passes over its values before a byte is written.

A lossless or block method needs no pass; `levels` and `ternary` need one, which counts magnitudes; ternary with
balanced rows needs two more, one before for the rows' sizes and one after for what is kept. Memory is a few chunks and
a few numbers a row.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec import sparse, survey
from motet.protocols.codec.changes import narrow, widen
from motet.protocols.codec.header import MAX_SCALE, Span, TensorHeader, checked
from motet.protocols.codec.kernels import Kernels
from motet.protocols.codec.pipeline import ordered
from motet.protocols.codec.settings import CodecSettings
from motet.protocols.errors import CodecError
from motet.protocols.tensor_files import TensorSpec

Found = TypeVar("Found")

Progress = Callable[[int, int], None]
"""Told how many values are done, of how many; an update that is surveyed first has its values to do several times."""


class Source(Protocol):
    """Where the differences come from. Called from several threads at once."""

    def read(self, spec: TensorSpec, start: int, count: int) -> NDArray[Any]:
        """`count` values from the flat index `start` on: uint16 bits for BF16, else floats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one tensor is encoded: its header, and for sparse methods which values are kept."""

    header: TensorHeader
    cut: sparse.Cut | None = None


class Told:
    """Adds up progress."""

    def __init__(self, tell: Progress, specs: Sequence[TensorSpec], settings: CodecSettings) -> None:
        self._tell, self._done = tell, 0
        surveyed = [spec for spec in specs if settings.surveyed and takes_method(spec, settings)]
        passes = 3 if settings.balanced else 1
        self._total = sum(math.prod(spec.shape) for spec in (*specs, *surveyed * passes))

    def add(self, values: int) -> None:
        """So many values are done."""
        self._done += values
        self._tell(self._done, self._total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyor:
    """Reads a source chunk by chunk, in a few threads."""

    source: Source
    kernels: Kernels
    chunk_values: int
    workers: int
    progress: Told

    def plan(self, specs: Sequence[TensorSpec], settings: CodecSettings) -> tuple[list[Plan], float]:
        """A plan for each tensor, and the factor for their scales if nobody tunes them."""
        plans = {spec.name: Plan(header=_plain(spec, settings)) for spec in specs}
        if not settings.surveyed:
            return list(plans.values()), 1.0
        chosen = [spec for spec in specs if takes_method(spec, settings)]
        tensors = [_header(spec, method="raw") for spec in chosen]
        found = self._survey(tensors, settings)
        for spec, choice in zip(chosen, found.choices, strict=True):
            plans[spec.name] = Plan(header=_sparse(spec, settings, choice.scale), cut=choice.cut)
        return list(plans.values()), found.factor

    def _survey(self, tensors: Sequence[TensorHeader], settings: CodecSettings) -> survey.Survey:
        if settings.method == "levels":
            return survey.levels([self._histogram(tensor) for tensor in tensors], settings.step)
        if not settings.balanced:
            return survey.ternary([self._histogram(tensor) for tensor in tensors], settings.density)
        sizes = [self._row_sizes(tensor) for tensor in tensors]
        weights = survey.row_weights([size.squares for size in sizes], tensors, settings.balance)
        ranked = [self._histogram(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True)]
        choices = [
            replace(choice, cut=replace(choice.cut, weights=weight))
            for choice, weight in zip(survey.ternary(ranked, settings.density).choices, weights, strict=True)
        ]
        kept = [self._kept(tensor, choice.cut) for tensor, choice in zip(tensors, choices, strict=True)]
        return survey.with_scales(choices, kept, sum(size.magnitudes for size in sizes))

    def _histogram(self, tensor: TensorHeader, weights: NDArray[np.float32] | None = None) -> survey.Histogram:
        """How often each magnitude occurs in a tensor, its rows weighed before."""
        return self._counted(tensor, lambda span, bits: sparse.ranked(bits, span, weights))

    def _kept(self, tensor: TensorHeader, cut: sparse.Cut) -> tuple[int, float]:
        """How many values a cut keeps, and the sum of their magnitudes."""
        return self._counted(tensor, lambda span, bits: survey.kept(bits, span, cut)).at_least(1)

    def _counted(
        self, tensor: TensorHeader, made: Callable[[Span, NDArray[np.uint16]], NDArray[np.uint16]]
    ) -> survey.Histogram:
        """How often each magnitude occurs in what is made of a tensor's chunks."""
        dense = np.zeros(survey.MAGNITUDES, np.int64)
        for _, part in self._each(tensor, lambda span, bits: self.kernels.histogram(made(span, bits))):
            dense += part
        return survey.Histogram.of(tensor.name, dense)

    def _row_sizes(self, tensor: TensorHeader) -> survey.RowSizes:
        squares, magnitudes = [], 0.0
        for _, part in self._each(tensor, survey.row_sizes):
            squares.append(part.squares)
            magnitudes += part.magnitudes
        if not math.isfinite(magnitudes):
            raise survey.not_finite(tensor.name)
        return survey.RowSizes(squares=np.concatenate([np.zeros(0), *squares]), magnitudes=magnitudes)

    def _each(
        self, tensor: TensorHeader, look: Callable[[Span, NDArray[np.uint16]], Found]
    ) -> Iterator[tuple[Span, Found]]:
        """What `look` finds in every chunk of a tensor, in order."""

        def work(span: Span) -> tuple[Span, Found]:
            words = self.source.read(tensor.spec, span.start, span.count)
            return span, look(span, bf16_bits(words, tensor.dtype))

        for span, found in ordered(work, tensor.spans(self.chunk_values), workers=self.workers):
            self.progress.add(span.count)
            yield span, found


def takes_method(spec: TensorSpec, settings: CodecSettings) -> bool:
    """Routing rows are float32 of one dimension, norms have one dimension: both stay lossless."""
    return len(spec.shape) == 2 and (spec.dtype == "BF16" or settings.method in ("int8", "int4"))


def bf16_bits(words: NDArray[Any], dtype: str) -> NDArray[np.uint16]:
    """Differences as bf16 bits."""
    return words if dtype == "BF16" else narrow(widen(words, dtype), "BF16").view(np.uint16)


def _plain(spec: TensorSpec, settings: CodecSettings) -> TensorHeader:
    """The header of a tensor that needs no survey."""
    if takes_method(spec, settings) and settings.method in ("int8", "int4"):
        return _header(spec, method=settings.method, block=settings.block)
    if spec.dtype == "BF16" and settings.method != "raw":
        return _header(spec, method="lossless")
    return _header(spec, method="raw")


def _sparse(spec: TensorSpec, settings: CodecSettings, scale: float) -> TensorHeader:
    """The header of a surveyed tensor."""
    if scale > MAX_SCALE:
        raise CodecError(
            f"{spec.name}: saw values that take a scale of {scale:g}, wanted at most {MAX_SCALE:g}; look for a "
            "diverged loss, train again"
        )
    row_scales = (settings.method == "ternary" and settings.row_scales) or None
    return _header(spec, method=settings.method, scale=scale, row_scales=row_scales)


def _header(spec: TensorSpec, **options: Any) -> TensorHeader:  # noqa: ANN401 - fields of the header
    return checked(TensorHeader, spec.name, name=spec.name, dtype=spec.dtype, shape=spec.shape, **options)
