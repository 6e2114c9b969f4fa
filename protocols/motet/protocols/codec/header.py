"""The head of an update file: whose difference it is, which tensors it holds, and how each is encoded.

Guarantees that a parsed header is the only byte string that says what it says (canonical JSON), that its scales are
finite and capped, and that sizes which follow from it are bounded before anything is allocated.

    header = Header(anchor=digest, chunk_values=CHUNK_VALUES, tensors=(TensorHeader(...), ...))
    for span in header.tensors[0].spans(header.chunk_values):
        span.start, span.rows, span.columns
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import FailFast, Field, ValidationError, model_validator

from motet.protocols.canonical import Digest, canonical_json
from motet.protocols.codec.settings import Method
from motet.protocols.documents import Strict, first_problem
from motet.protocols.errors import CodecError, TensorFileError
from motet.protocols.tensor_files import DTYPE_BYTES, TensorSpec

CHUNK_VALUES = 1 << 22
"""Values in a chunk unless a row is longer: 8 MiB of bf16, so that a chunk's own tables weigh next to nothing."""
MAX_CHUNK_VALUES = 1 << 22
"""Also the longest row. What a chunk may ask of a decoder's memory follows from it."""
MAX_CHUNKS = 1 << 16
"""Chunks in a file: sixty times those of a model of 7B parameters, and found in half a second."""
MAX_TENSORS = 8192
MAX_TENSOR_VALUES = 1 << 40
MAX_HEADER_BYTES = 1 << 20
"""Hundreds of tensors take some tens of kilobytes; parsing costs a hundred times what it reads."""
MAX_SCALE = 1e4
"""The largest scale: weights are around 1, so more is damage."""

_MAX_PROBLEM = 300
_SCALED = ("ternary", "levels")
_BLOCKED = ("int8", "int4")
_Made = TypeVar("_Made", bound=Strict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One chunk of a tensor: `rows` whole rows of `columns` values, from the flat index `start` on."""

    number: int
    start: int
    rows: int
    columns: int

    @property
    def count(self) -> int:
        """Values in the chunk."""
        return self.rows * self.columns


class TensorHeader(Strict):
    """One tensor: what it is, and how it is encoded."""

    name: str
    dtype: Literal["BF16", "F16", "F32"]
    shape: tuple[Annotated[int, Field(ge=0, le=MAX_TENSOR_VALUES)], ...] = Field(max_length=8)
    method: Method
    scale: float | None = Field(None, gt=0, le=MAX_SCALE)
    """ternary: the magnitude of a kept value, of which a row's own scale is a multiple. levels: the step. A float32."""
    row_scales: Literal[True] | None = None
    """ternary: each row has a scale of its own, relative to `scale`."""
    block: int | None = Field(None, ge=8, le=4096)
    """int8, int4: values that share a scale."""

    @property
    def spec(self) -> TensorSpec:
        """Name, dtype and shape alone."""
        return TensorSpec(name=self.name, dtype=self.dtype, shape=self.shape)

    @property
    def columns(self) -> int:
        """Values in a row: the last dimension."""
        return self.shape[-1] if self.shape else 1

    @property
    def values(self) -> int:
        """Values in the tensor."""
        return math.prod(self.shape)

    def spans(self, chunk_values: int) -> Iterator[Span]:
        """The tensor's chunks: as many whole rows as `chunk_values` holds, and at least one."""
        if not self.values:
            return
        rows, step = self.values // self.columns, self._rows_a_chunk(chunk_values)
        for number, first in enumerate(range(0, rows, step)):
            yield Span(number=number, start=first * self.columns, rows=min(step, rows - first), columns=self.columns)

    def chunks(self, chunk_values: int) -> int:
        """How many chunks `spans` has."""
        return -(-self.values // self.columns // self._rows_a_chunk(chunk_values)) if self.values else 0

    def _rows_a_chunk(self, chunk_values: int) -> int:
        return max(1, chunk_values // self.columns)

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            _ = self.spec
        except TensorFileError as error:
            raise ValueError(str(error)) from error
        if self.values > MAX_TENSOR_VALUES or self.columns > MAX_CHUNK_VALUES:
            raise ValueError(
                f"saw {self.values} values in rows of {self.columns}, wanted at most {MAX_TENSOR_VALUES} in rows of "
                f"at most {MAX_CHUNK_VALUES}"
            )
        if (self.scale is not None) != (self.method in _SCALED) or (self.block is not None) != (
            self.method in _BLOCKED
        ):
            raise ValueError(f"saw options that the method {self.method} does not have, or lacks")
        if self.row_scales and self.method != "ternary":
            raise ValueError(f"saw row scales with the method {self.method}, wanted them with ternary only")
        if self.method == "lossless" and self.dtype != "BF16":
            raise ValueError(f"saw the method lossless for {self.dtype}, wanted BF16; raw is lossless for others")
        if self.scale is not None and struct.unpack("<f", struct.pack("<f", self.scale))[0] != self.scale:
            raise ValueError(f"saw the scale {self.scale!r}, wanted a float32")
        return self


class Header(Strict):
    """What an update file says before its chunks."""

    schema_: Literal["motet.update/1"] = Field("motet.update/1", alias="schema")
    anchor: Digest
    """The anchor that the update changes."""
    base: Digest | None = None
    """The contribution whose expert the update changes; None when it is the anchor itself."""
    chunk_values: int = Field(CHUNK_VALUES, ge=1 << 10, le=MAX_CHUNK_VALUES)
    tensors: Annotated[tuple[TensorHeader, ...], FailFast()] = Field(max_length=MAX_TENSORS)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors' names, dtypes and shapes, in the order of the file."""
        return tuple(tensor.spec for tensor in self.tensors)

    @property
    def values(self) -> int:
        """Values in all tensors."""
        return sum(tensor.values for tensor in self.tensors)

    def spans(self) -> Iterator[tuple[int, TensorHeader, Span]]:
        """Every chunk of the file in its order, with its tensor and that tensor's index."""
        for index, tensor in enumerate(self.tensors):
            for span in tensor.spans(self.chunk_values):
                yield index, tensor, span

    def canonical(self) -> bytes:
        """The header's canonical JSON; options that a method does not have are left out."""
        return canonical_json(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    @classmethod
    def parse(cls, data: bytes, *, where: str = "header") -> Self:
        """Read canonical JSON.

        Raises:
            CodecError: it breaks a rule, or is not the canonical form of what it says.
        """
        try:
            header = cls.model_validate_json(data)
        except ValidationError as error:  # a stranger chose the words in it: no control characters, no megabytes
            problem = ascii(first_problem(error))[1:-1][:_MAX_PROBLEM]
            raise CodecError(f"{where}: {problem}; it was not made by this format") from error
        if header.canonical() != data:
            raise CodecError(f"{where}: saw JSON that is not canonical, wanted sorted keys, no spaces, no defaults")
        return header

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names):
            raise ValueError("saw a tensor twice, wanted each once")
        if (chunks := sum(tensor.chunks(self.chunk_values) for tensor in self.tensors)) > MAX_CHUNKS:
            raise ValueError(f"saw {chunks} chunks, wanted at most {MAX_CHUNKS}; take more values in a chunk")
        return self


def checked(model: type[_Made], where: str, **fields: Any) -> _Made:  # noqa: ANN401 - the model's fields
    """A header, or a tensor's, to be written. Raises CodecError when the format cannot hold it."""
    try:
        return model(**fields)
    except ValidationError as error:
        raise CodecError(f"{where}: {first_problem(error)}; an update file cannot hold it") from error


def require_specs(saw: Sequence[TensorSpec], wanted: Sequence[TensorSpec], *, where: str) -> None:
    """Refuse any tensors but `wanted`, in any order.

    Raises:
        CodecError: names the first tensor that is missing, not wanted, or of another dtype or shape.
    """
    found, expected = {spec.name: spec for spec in saw}, {spec.name: spec for spec in wanted}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise CodecError(
                f"{where}: {name}: saw {_describe(found.get(name))}, wanted {_describe(expected.get(name))}; "
                "pack the expert again on the charter's anchor"
            )


def bytes_of(spec: TensorSpec, count: int) -> int:
    """The bytes of `count` values of a tensor."""
    return count * DTYPE_BYTES[spec.dtype]


def _describe(spec: TensorSpec | None) -> str:
    return "no such tensor" if spec is None else f"{spec.dtype} {spec.shape}"
