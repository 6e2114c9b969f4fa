"""What an update file is, for people: its method, its density, and how near the entropy bound it came.

The bound is ComPEFT's (arXiv 2311.13171, section 2): H(k) + k bits per parameter for ternary values of density k at
independent positions, H the binary entropy in bits. Rows that differ in density can go below it.

    description = describe(Path("update.motetup"))
    description.bits_per_parameter, description.bound
"""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from motet.protocols.canonical import Digest
from motet.protocols.codec.changes import SparseChange
from motet.protocols.codec.decoder import UpdateReader
from motet.protocols.codec.settings import CodecSettings, Method
from motet.protocols.codec.sparse import MAX_LEVEL
from motet.protocols.codec.survey import DEAD_ZONE
from motet.protocols.documents import Strict


class TensorDescription(Strict):
    """One tensor of an update file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: Method
    bytes: int
    """In the file, frames included."""
    bits_per_parameter: float
    density: float | None
    """The share of values kept; None for methods that keep all."""
    scale: float | None


class Description(Strict):
    """An update file."""

    file_bytes: int
    anchor: Digest
    base: Digest | None
    methods: tuple[Method, ...]
    parameters: int
    bits_per_parameter: float
    """The whole file over all parameters."""
    density: float | None
    """The share of values kept in the ternary and levels tensors; None if there are none."""
    bound: float | None
    """H(k) + k bits per parameter at that density, for ternary files."""
    over_bound_percent: float | None
    """What the ternary tensors take beyond the bound, in per cent; negative below it."""
    ratio: float
    """How many times smaller the file is than its tensors in their own dtypes."""
    tensors: tuple[TensorDescription, ...]


def entropy_bound(density: float) -> float:
    """H(k) + k bits per parameter: positions and signs of ternary values."""
    if density in (0.0, 1.0):
        return density
    positions = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    return positions + density


def expected_bits(settings: CodecSettings) -> float:
    """About how many bits a parameter takes if the differences are normally distributed: for plans, not for figures."""
    match settings.method:
        case "ternary":
            return entropy_bound(settings.density)
        case "levels":
            return _levels_entropy(settings.step)
        case "int8":
            return 8 + 16 / settings.block
        case "int4":
            return 4 + 16 / settings.block
        case "lossless":
            return 10.6
        case "raw":
            return 16.0


def _levels_entropy(step: float) -> float:
    """The entropy of a normal variable in levels of `step` standard deviations with the dead zone, in bits."""
    edges = [0.0, *((level + DEAD_ZONE) * step for level in range(MAX_LEVEL))]
    below = [math.erf(edge / math.sqrt(2)) for edge in edges] + [1.0]
    shares = [above - under for under, above in pairwise(below)]
    return sum(-share * math.log2(share) for share in shares if share > 0) + (1 - shares[0])


def describe(path: Path, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Description:
    """Decode a file and count; `on_progress` is told values done, of how many. Raises CodecError when it is damaged."""
    with UpdateReader(path) as update:
        update.check_footer()
        kept, done = {}, 0
        for tensor in update.header.tensors:
            kept[tensor.name] = _kept(update, tensor.name)
            done += tensor.values
            on_progress(done, update.header.values)
        tensors = tuple(_describe(update, index, kept) for index in range(len(update.header.tensors)))
        header = update.header
    size, ternary = path.stat().st_size, [tensor for tensor in header.tensors if tensor.method == "ternary"]
    sparse = [tensor for tensor in header.tensors if tensor.scale is not None]
    values = sum(tensor.values for tensor in sparse)
    density = sum(kept[tensor.name] or 0 for tensor in sparse) / values if values else None
    pure = density is not None and len(ternary) == len(sparse)
    spent = sum(tensor.bytes for tensor in tensors if tensor.method == "ternary") * 8
    bound = entropy_bound(density) if pure and density is not None else None
    return Description(
        file_bytes=size,
        anchor=header.anchor,
        base=header.base,
        methods=tuple(sorted({tensor.method for tensor in header.tensors})),
        parameters=header.values,
        bits_per_parameter=8 * size / max(1, header.values),
        density=density,
        bound=bound,
        over_bound_percent=100 * (spent / values / bound - 1) if bound else None,
        ratio=sum(spec.nbytes for spec in header.specs) / size,
        tensors=tensors,
    )


def _kept(update: UpdateReader, name: str) -> int | None:
    """How many values a sparse tensor keeps; decodes all of it in any case."""
    kept = None
    for change in update.changes(name):
        if isinstance(change, SparseChange):
            kept = (kept or 0) + len(change.positions)
    return kept


def _describe(update: UpdateReader, index: int, kept: dict[str, int | None]) -> TensorDescription:
    tensor = update.header.tensors[index]
    size, count = update.payload_bytes(tensor.name), kept[tensor.name]
    return TensorDescription(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        method=tensor.method,
        bytes=size,
        bits_per_parameter=8 * size / max(1, tensor.values),
        density=None if count is None else count / tensor.values,
        scale=tensor.scale,
    )
