"""The tensors of a stock export: what each is to be, and what makes its bytes piece by piece.

Guarantees: whatever tensors are planned, nothing is read until their bytes are asked for, so that what only knows
names and shapes is enough to know sizes; the order follows from the names alone.

    files = stock_tensors(sources, biases, family, widening)       # file name -> its tensors
    sum(tensor.spec.nbytes for tensors in files.values() for tensor in tensors)
    for chunk in files["router.safetensors"][0].chunks(): ...
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from motet.moe.expanded_tensors import Tensors
from motet.moe.families import Family
from motet.moe.families.family import Treatment
from motet.moe.token_router import TOKEN_ROUTER
from motet.moe.widening import CONSTANT, FAINT, Array, Widening
from motet.protocols.expert_sizes import expert_file
from motet.protocols.tensor_files import TensorSpec

_CHUNK_BYTES = 4 << 20
_NEGLIGIBLE = 2.0**-5
"""A relative change of the epsilon of queries' and keys' norms that is not worth rounding half-precision matrices for:
it shows where their squares are as small as epsilon itself."""

NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StockTensor:
    """One tensor of the export: what it is to be, and what yields its bytes."""

    spec: TensorSpec
    chunks: Callable[[], Iterator[bytes]]


def stock_tensors(
    sources: Mapping[str, Tensors], biases: Mapping[str, Array], family: Family, widening: Widening
) -> dict[str, list[StockTensor]]:
    """The export's tensors by file, in an order that depends on their names only."""
    shards: dict[str, list[StockTensor]] = {}
    for name in sorted(sources):
        if name == TOKEN_ROUTER or name.endswith(".mlp.router.bias"):
            continue
        stored = sources[name].header[name].spec
        if ".mlp.router." in name:
            bias = biases[name.replace(".weight", ".bias")]
            tensor = _router(sources[name], stored, family.stock.name(name), widening, bias)
        else:
            tensor = _widened(sources, stored, family.stock.name(name), family.stock.treatment(name), widening)
        shards.setdefault(_shard(name), []).append(tensor)
    return shards


def _shard(name: str) -> str:
    if ".mlp.experts." in name:
        return expert_file(int(name.split(".mlp.experts.")[1].split(".")[0]))
    return "router.safetensors" if ".mlp.router." in name else "shared.safetensors"


def _router(reader: Tensors, stored: TensorSpec, name: str, widening: Widening, bias: Array) -> StockTensor:
    experts, hidden = stored.shape

    def chunks() -> Iterator[bytes]:
        weight = np.zeros((experts, widening.width), "<f4")
        if widening.average is None:
            weight[:, :hidden] = read_floats(reader, stored.name).reshape(stored.shape)
        weight[:, hidden:] = widening.router_columns(bias)
        yield weight.tobytes()

    return StockTensor(spec=TensorSpec(name=name, dtype="F32", shape=(experts, widening.width)), chunks=chunks)


def _widened(
    sources: Mapping[str, Tensors], stored: TensorSpec, name: str, treatment: Treatment, widening: Widening
) -> StockTensor:
    reader, shape = sources[stored.name], widening.shape(treatment, stored.shape)
    factor = widening.factor(treatment.scale)
    exact = len(stored.shape) == 1 or stored.dtype in ("F32", "F64")
    if not exact and abs(factor**2 - 1) <= _NEGLIGIBLE:
        factor = 1.0
    # Scaled in float32, where the factor costs no digits.
    dtype = "F32" if factor != 1.0 and stored.dtype != "F64" else stored.dtype
    spec = TensorSpec(name=name, dtype=dtype, shape=shape)
    if shape == stored.shape and factor == 1.0:
        return StockTensor(spec=spec, chunks=lambda: reader.chunks(stored.name))
    columns = (shape[-1] if len(shape) == 2 else 1, stored.shape[-1] if len(stored.shape) == 2 else 1)
    entries = list(widening.entries(treatment))

    def chunks() -> Iterator[bytes]:
        row_bytes, first = columns[1] * NUMPY[stored.dtype].itemsize, 0
        for raw in reader.chunks(stored.name, max(1, _CHUNK_BYTES // row_bytes) * row_bytes):
            rows = np.frombuffer(raw, NUMPY[stored.dtype]).reshape(-1, columns[1])
            if factor != 1.0:
                rows = (_values(rows, stored.dtype) * factor).astype(NUMPY[dtype])
            wide = np.zeros((len(rows), columns[0]), rows.dtype)
            wide[:, : columns[1]] = rows
            if treatment.new == "embedding":
                _embed(wide, first, dtype, sources.get(TOKEN_ROUTER), widening)
            first += len(rows)
            yield _placed(wide, first - len(rows), dtype, entries).tobytes()
        if more := shape[0] - first:
            yield _placed(np.zeros((more, columns[0]), NUMPY[dtype]), first, dtype, entries).tobytes()

    return StockTensor(spec=spec, chunks=chunks)


def _placed(rows: Array, first: int, dtype: str, entries: Iterable[tuple[int, int, float]]) -> Array:
    """Rows from `first` on with what belongs into them."""
    for row, column, value in entries:
        if first <= row < first + len(rows):
            rows[row - first, column] = _stored(np.float32(value), dtype)
    return rows


def _embed(rows: Array, first: int, dtype: str, evidence: Tensors | None, widening: Widening) -> None:
    """Constants, and what each of these tokens says, into the new channels of an embedding's rows."""
    start = widening.hidden + widening.parts
    rows[:, widening.hidden : start] = _stored(np.float32(CONSTANT), dtype)
    if evidence is None:
        return
    vocabulary = evidence.header[TOKEN_ROUTER].spec.shape[1]
    for expert in range(widening.experts):
        at = 4 * ((expert + 1) * vocabulary + first)
        told = np.frombuffer(evidence.slice(TOKEN_ROUTER, at, 4 * len(rows)), "<f4")
        rows[:, start + expert] = _stored(told * np.float32(FAINT), dtype)


def read_floats(reader: Tensors, name: str) -> Array:
    """A small tensor as float64."""
    raw = np.frombuffer(b"".join(reader.chunks(name)), NUMPY[reader.header[name].spec.dtype])
    return _values(raw, reader.header[name].spec.dtype)


def _stored(values: Array | np.float32, dtype: str) -> Array:
    """Float32 as it is stored; in bfloat16 its leading bits, which is all there is of constants and evidence."""
    floats = np.asarray(values, "<f4")
    return (floats.view("<u4") >> 16).astype("<u2") if dtype == "BF16" else floats.astype(NUMPY[dtype])


def _values(stored: Array, dtype: str) -> Array:
    floats = (stored.astype("<u4") << 16).view("<f4") if dtype == "BF16" else stored
    return floats.astype("<f8")
