"""Low-rank experts: two factors for every feed-forward matrix of the anchor, in memory and in files.

An expert's matrix is W + scale B A, with W (out, in) the anchor's, A (rank, in), B (out, rank) (LoRA, arXiv 2106.09685,
section 4.1). While an expert is trained the scale is LoRA's alpha / rank; in files it is folded into B, and both
factors are bfloat16. The update defines the expert, as it does a full one.

    write_lowrank_update(path, anchor, factors, rows, CodecSettings(method="int8"))
    expert = read_lowrank_update(path, anchor, name="medicine", contribution=digest)
    compose(anchor.model(), [expert, full_expert])              # kept low-rank: no dense copy
    with swap_ffn(model, dense_ffn(expert, anchor.ffn())):      # expanded, for whoever needs a dense network
        ...
    read_stored(store / "expert.safetensors", anchor, name="medicine", contribution=digest)     # of either kind
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from motet.moe.anchor import Anchor
from motet.moe.experts import LOSSLESS, Expert, read_expert, routing_values, rows_of, tensor_of
from motet.moe.routing import RoutingRows
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.codec import CodecSettings, Encoding, UpdateReader, apply, encode
from motet.protocols.contribution import require_lowrank_method
from motet.protocols.errors import CodecError, ExpertError
from motet.protocols.expert_files import (
    StoredTensors,
    expert_specs,
    factor_names,
    rank_of,
    require_specs,
    update_specs,
)
from motet.protocols.tensor_files import TensorReader, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """One matrix's change, scale B A.

    a: (rank, in).
    b: (out, rank).
    scale: what the product is multiplied with; 1 where it is folded into `b`, as in every file.
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Rows of `a`, columns of `b`."""
        return self.a.shape[0]

    def expanded(self, own: Tensor) -> Tensor:
        """The expert's matrix beside the anchor's `own` (out, in): a float32 sum, rounded to the dtype of `own`."""
        wide = torch.float64 if own.dtype == torch.float64 else torch.float32
        change = self.b.detach().to(own.device, wide) @ self.a.detach().to(own.device, wide)
        return (own.to(wide) + self.scale * change).to(own.dtype)

    def folded(self) -> "Factors":
        """The same with scale 1, in bfloat16: as files hold it."""
        b = self.b.detach().float() * self.scale
        return Factors(a=self.a.detach().bfloat16(), b=b.bfloat16())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRankExpert:
    """One owner's low-rank expert as it runs: factors by the anchor's tensor names, and its routing rows.

    `contribution` is the digest that identifies the expert and orders it within a composite.
    """

    name: str
    contribution: str
    factors: Mapping[str, Factors]
    rows: RoutingRows

    @property
    def rank(self) -> int:
        """The rank of all its factors. Raises ExpertError when they differ in it."""
        return common_rank(self.factors)

    def ffn(self, anchor_ffn: Mapping[str, Tensor]) -> "Expansion":
        """The dense network that the expert is beside the anchor's, in the dtype of the anchor's tensors."""
        return Expansion(anchor_ffn, self.factors)


class Expansion(Mapping[str, Tensor]):
    """A low-rank expert's dense tensors under the anchor's names, each made when it is asked for, and not kept."""

    def __init__(self, anchor_ffn: Mapping[str, Tensor], factors: Mapping[str, Factors]) -> None:
        self._anchor_ffn, self._factors = anchor_ffn, factors

    def __getitem__(self, name: str) -> Tensor:
        return self._factors[name].expanded(self._anchor_ffn[name].detach())

    def __iter__(self) -> Iterator[str]:
        return iter(self._anchor_ffn)

    def __len__(self) -> int:
        return len(self._anchor_ffn)


AnyExpert = Expert | LowRankExpert


def dense_ffn(expert: AnyExpert, anchor_ffn: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """An expert's whole feed-forward network, of either kind, under the anchor's names."""
    return expert.ffn if isinstance(expert, Expert) else expert.ffn(anchor_ffn)


def common_rank(factors: Mapping[str, Factors]) -> int:
    """The rank of all these factors. Raises ExpertError when there are none, or when they differ in it."""
    ranks = {size for each in factors.values() for size in (each.rank, each.b.shape[-1])}
    if len(ranks) != 1:
        raise ExpertError(
            f"saw factors of ranks {sorted(ranks)}, wanted one rank for all of an expert's; fill up the smaller "
            "factors with zeros"
        )
    return ranks.pop()


def require_factors(factors: Mapping[str, Factors], manifest: AnchorManifest) -> int:
    """The rank of factors that fit the anchor; raises ExpertError for the first that does not."""
    rank = common_rank(factors)
    wanted = {spec.name: spec.shape for spec in manifest.ffn()}
    for name in sorted(factors.keys() | wanted.keys()):
        found = factors.get(name)
        saw = None if found is None else (found.b.shape[0], found.a.shape[-1])
        if saw != wanted.get(name):
            raise ExpertError(
                f"{name}: saw factors of a matrix {saw}, wanted {wanted.get(name, 'no such matrix')}, as in the "
                "anchor; train on this anchor"
            )
    return rank


class FactorSource:
    """Factors and rows as a codec source, the scale folded in; what the update defines is what it holds.

    Raises ExpertError when they do not fit the anchor.
    """

    def __init__(self, factors: Mapping[str, Factors], rows: RoutingRows, manifest: AnchorManifest) -> None:
        self.rank = require_factors(factors, manifest)
        self._rows = routing_values(rows, manifest)
        self._words: dict[str, NDArray[Any]] = {}
        for name, each in factors.items():
            folded = each.folded()
            for stored, tensor in zip(factor_names(name), (folded.a, folded.b), strict=True):
                self._words[stored] = tensor.cpu().contiguous().view(torch.int16).numpy().view(np.uint16).reshape(-1)

    def read(self, spec: TensorSpec, start: int, count: int) -> NDArray[Any]:
        """See `motet.protocols.codec.Source`."""
        if spec.name in self._words:
            return self._words[spec.name][start : start + count]
        return self._rows(spec.name, start, count)


def write_lowrank_update(
    path: Path,
    anchor: Anchor,
    factors: Mapping[str, Factors],
    rows: RoutingRows,
    settings: CodecSettings = LOSSLESS,
) -> Encoding:
    """Write the update that is a low-rank expert of this anchor.

    Raises:
        ExpertError: factors or rows do not fit the anchor.
        CodecError: a value is not finite, or the method would leave values out.
        StorageError: the disk is full.
    """
    require_lowrank_method(settings.method)
    source = FactorSource(factors, rows, anchor.manifest)
    return encode(path, source, update_specs(anchor.manifest, source.rank), settings, anchor=anchor.digest)


def read_lowrank_update(path: Path, anchor: Anchor, *, name: str, contribution: str) -> LowRankExpert:
    """The low-rank expert that an update defines.

    Raises:
        CodecError: the update is damaged, fits another anchor, is a full expert's, or a value in it is not finite.
    """
    with UpdateReader(path) as seen:
        rank = rank_of(seen.specs)
    if rank is None:
        raise CodecError(f"{path.name}: saw no factors, wanted a low-rank expert's; read it as a full expert's update")
    specs = expert_specs(anchor.manifest, rank)
    tensors = {spec.name: torch.empty(spec.shape, dtype=_DTYPES[spec.dtype]) for spec in specs}
    wanted = update_specs(anchor.manifest, rank)
    with StoredTensors({}) as nothing, UpdateReader(path, wanted=wanted, anchor=anchor.digest) as update:
        for spec, start, words in apply(update, nothing, specs):
            part = tensor_of(words.tobytes(), spec.dtype)
            tensors[spec.name].view(-1)[start : start + len(part)] = part
    return _expert(tensors, anchor.manifest, name=name, contribution=contribution)


def read_stored(path: Path, anchor: Anchor, *, name: str, contribution: str) -> AnyExpert:
    """The expert in a store file, of either kind; raises ExpertError when the file does not fit the anchor."""
    with TensorReader(path) as reader:
        rank = rank_of(reader.specs)
        if rank is not None:
            require_specs(path, reader, expert_specs(anchor.manifest, rank))
            tensors = {spec.name: reader.tensor(spec.name) for spec in reader.specs}
            return _expert(tensors, anchor.manifest, name=name, contribution=contribution)
    return read_expert(path, anchor, name=name, contribution=contribution)


_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}


def _expert(tensors: Mapping[str, Tensor], manifest: AnchorManifest, *, name: str, contribution: str) -> LowRankExpert:
    factors = {}
    for spec in manifest.ffn():
        a, b = factor_names(spec.name)
        factors[spec.name] = Factors(a=tensors[a], b=tensors[b])
    return LowRankExpert(name=name, contribution=contribution, factors=factors, rows=rows_of(tensors, manifest))
