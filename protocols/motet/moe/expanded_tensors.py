"""Low-rank experts' matrices as dense tensors of a file that does not exist: made piece by piece while they are read.

Guarantees: a piece of W + B A is the float32 rounding of a float64 sum, whatever pieces are asked for; in memory are
one piece of W and the factors of one matrix.

    sources = with_expansions(sources, config)                    # name -> what reads it; no factors any more
    sources["model.layers.0.mlp.experts.2.gate_proj.weight"].chunks(...)
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from motet.moe.composition import expert_tensor_name, factor_tensor_names
from motet.moe.config import MotetConfig
from motet.moe.families import family_of
from motet.protocols.tensor_files import CHUNK_BYTES, StoredTensor, TensorSpec


class Tensors(Protocol):
    """What reads tensors by name: a `TensorReader`, or a low-rank expert's expansion."""

    @property
    def header(self) -> Mapping[str, StoredTensor]:
        """Every tensor's spec by name."""

    def chunks(self, name: str, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The raw little-endian bytes of one tensor, at most `size` at a time."""

    def slice(self, name: str, start: int, size: int) -> bytes:
        """`size` raw little-endian bytes of one tensor, from its byte `start` on."""

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in memory."""


class Described:
    """Tensors of which no more than names, dtypes and shapes is known; reading one raises ValueError."""

    def __init__(self, specs: Iterable[TensorSpec]) -> None:
        self.header: Mapping[str, StoredTensor] = {spec.name: StoredTensor(spec=spec, offset=0) for spec in specs}

    def chunks(self, name: str, size: int = CHUNK_BYTES) -> NoReturn:
        """See `Tensors`."""
        raise ValueError(f"saw a wish for {size} bytes of {name}, wanted none: only its shape is known; open the file")

    def slice(self, name: str, start: int, size: int) -> NoReturn:
        """See `Tensors`."""
        self.chunks(name, size)

    def tensor(self, name: str) -> NoReturn:
        """See `Tensors`."""
        self.chunks(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sum:
    """One matrix: where W, A and B are."""

    own: tuple[Tensors, str]
    a: tuple[Tensors, str]
    b: tuple[Tensors, str]


class Expansion:
    """The matrices of low-rank experts, dense: float32, or float64 beside an anchor of that dtype."""

    def __init__(self, sums: Mapping[str, _Sum]) -> None:
        self._sums = dict(sums)
        self.header: Mapping[str, StoredTensor] = {name: _described(name, each.own) for name, each in sums.items()}
        self._factors: tuple[str, NDArray[np.float64], NDArray[np.float64]] | None = None

    def chunks(self, name: str, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """See `Tensors`."""
        whole = self.header[name].spec.nbytes
        for start in range(0, whole, size):
            yield self.slice(name, start, min(size, whole - start))

    def slice(self, name: str, start: int, size: int) -> bytes:
        """See `Tensors`."""
        spec = self.header[name].spec
        row = spec.nbytes // spec.shape[0]
        first, last = start // row, -(-(start + size) // row)
        return self._rows(name, first, last)[start - first * row :][:size]

    def tensor(self, name: str) -> torch.Tensor:
        """See `Tensors`."""
        spec = self.header[name].spec
        dtype = torch.float64 if spec.dtype == "F64" else torch.float32
        return torch.frombuffer(bytearray(b"".join(self.chunks(name))), dtype=dtype).reshape(spec.shape)

    def _rows(self, name: str, first: int, last: int) -> bytes:
        """Rows `first` to `last` of W + B A."""
        if self._factors is None or self._factors[0] != name:
            each = self._sums[name]
            self._factors = (name, _wide(*each.a), _wide(*each.b))
        reader, own = self._sums[name].own
        stored = reader.header[own].spec
        row = stored.nbytes // stored.shape[0]
        raw = bytearray(reader.slice(own, first * row, (last - first) * row))
        part = torch.frombuffer(raw, dtype=_TORCH[stored.dtype]).reshape(last - first, -1).double().numpy()
        _, a, b = self._factors
        found: bytes = (part + b[first:last] @ a).astype(_NUMPY[self.header[name].spec.dtype]).tobytes()
        return found


def with_expansions(sources: Mapping[str, Tensors], config: MotetConfig) -> dict[str, Tensors]:
    """What reads each tensor of a composite when its low-rank experts are expanded.

    `sources` are the composite's own, checked against its configuration.
    """
    family, sums, gone = family_of(config.anchor.model_type), {}, set[str]()
    for expert, rank in enumerate(config.ranks):
        for name in (each for layer in range(config.num_hidden_layers) for each in family.ffn_names(layer)):
            if rank is None:
                continue
            own, (a, b) = expert_tensor_name(name, 0), factor_tensor_names(name, expert)
            gone |= {a, b}
            parts = {"own": (sources[own], own), "a": (sources[a], a), "b": (sources[b], b)}
            sums[expert_tensor_name(name, expert)] = _Sum(**parts)
    kept: dict[str, Tensors] = {name: reader for name, reader in sources.items() if name not in gone}
    return kept | dict.fromkeys(sums, Expansion(sums))


_TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_NUMPY: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


def _described(name: str, own: tuple[Tensors, str]) -> StoredTensor:
    stored = own[0].header[own[1]].spec
    dtype = "F64" if stored.dtype == "F64" else "F32"
    return StoredTensor(spec=TensorSpec(name=name, dtype=dtype, shape=stored.shape), offset=0)


def _wide(reader: Tensors, name: str) -> NDArray[np.float64]:
    wide: NDArray[np.float64] = reader.tensor(name).double().numpy()
    return wide
