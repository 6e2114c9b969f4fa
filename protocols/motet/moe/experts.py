"""Experts as differences to the anchor's feed-forward layers, in memory; `protocols.expert_files` knows their files.

The update *defines* the expert: float32 anchor plus float32 change, rounded to the anchor's dtype. Owner and
coordinator compute the same bits from the same update, and every figure is measured after that rounding.

    write_update(path, anchor, trained_ffn, rows, CodecSettings(method="ternary"))
    expert = read_update(path, anchor, name="medicine", contribution=digest)
    with swap_ffn(model, expert.ffn):
        ...                                                     # the anchor with this expert alone
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from motet.moe.anchor import Anchor
from motet.moe.routing import RoutingRows
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.codec import CodecSettings, Encoding, UpdateReader, apply, encode
from motet.protocols.errors import ExpertError
from motet.protocols.expert_files import (
    ROUTER_TOKENS,
    StoredTensors,
    expert_specs,
    require_specs,
    router_bias_name,
    router_weight_name,
    update_specs,
)
from motet.protocols.tensor_files import TensorReader, TensorSpec

LOSSLESS = CodecSettings(method="lossless")

_SLICE = 1 << 14
"""Values subtracted at a time: larger ones stay behind in the allocator, some for every thread."""

_TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The earlier version of an expert that an update changes: its contribution's digest, and its store file."""

    contribution: str
    file: Path


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expert:
    """One owner's expert as it runs: a whole feed-forward network and its routing rows.

    `ffn` has the anchor's tensor names (`model.layers.{l}.mlp.{gate_proj,up_proj,down_proj}.weight`), shapes and
    dtype; `contribution` is the digest that identifies the expert and orders it within a composite.
    """

    name: str
    contribution: str
    ffn: Mapping[str, Tensor]
    rows: RoutingRows


Before = Callable[[TensorSpec, int, int], Tensor]
"""What a difference is against: `count` values from a flat index on, float32. Called from several threads at once."""


class Difference:
    """What training changed, as a codec source: subtracted in float32, rounded to bf16, a slice at a time.

    Args:
        trained: the trained feed-forward tensors, under the anchor's names, on any device.
        rows: the routing rows, which travel whole.
        before: what the difference is against, asked by the anchor's specs.
        manifest: the anchor's.

    Raises:
        ExpertError: tensors or rows do not fit the anchor.
    """

    def __init__(
        self, trained: Mapping[str, Tensor], rows: RoutingRows, before: Before, manifest: AnchorManifest
    ) -> None:
        _require_same("the trained tensors", {name: tuple(t.shape) for name, t in trained.items()}, manifest.ffn())
        self._trained, self._before = trained, before
        self._specs = {spec.name: spec for spec in manifest.ffn()}
        self._rows = routing_values(rows, manifest)

    def read(self, spec: TensorSpec, start: int, count: int) -> NDArray[Any]:
        """See `motet.protocols.codec.Source`."""
        if spec.name not in self._specs:
            return self._rows(spec.name, start, count)
        bits = np.empty(count, np.uint16)
        after = self._trained[spec.name].detach().reshape(-1)
        for done in range(0, count, _SLICE):
            size = min(_SLICE, count - done)
            before = self._before(self._specs[spec.name], start + done, size)
            part = after[start + done : start + done + size].cpu().float() - before
            bits[done : done + size] = part.bfloat16().view(torch.int16).numpy().view(np.uint16)
        return bits


def routing_values(rows: RoutingRows, manifest: AnchorManifest) -> Callable[[str, int, int], NDArray[Any]]:
    """Routing as an update holds it: (name, start, count) -> its values; raises ExpertError when it does not fit."""
    _require_rows(rows, manifest)
    tokens = rows.evidence(manifest.vocabulary_size)
    named = {router_weight_name(layer): rows.weight[layer] for layer in range(manifest.layers)}
    named |= {router_bias_name(layer): rows.bias[layer : layer + 1] for layer in range(manifest.layers)}

    def values(name: str, start: int, count: int) -> NDArray[Any]:
        if name == ROUTER_TOKENS:
            part = tokens[start : start + count].bfloat16()
            return part.view(torch.int16).numpy().view(np.uint16)
        row: NDArray[Any] = named[name].detach().cpu().float().numpy()[start : start + count]
        return row

    return values


def values_of(stored: StoredTensors) -> Before:
    """Stored tensors as something to take a difference against."""

    def before(spec: TensorSpec, start: int, count: int) -> Tensor:
        return tensor_of(stored(spec, start, count), spec.dtype).float()

    return before


def materialise(anchor: Tensor, update: Tensor) -> Tensor:
    """The expert's tensor that a change defines, in the anchor's dtype: `codec.changes` says the same for bytes."""
    return torch.where(update == 0, anchor, (anchor.float() + update.float()).to(anchor.dtype))


def write_update(
    path: Path,
    anchor: Anchor,
    trained_ffn: Mapping[str, Tensor],
    rows: RoutingRows,
    settings: CodecSettings = LOSSLESS,
    *,
    base: Base | None = None,
    before: Before | None = None,
) -> Encoding:
    """Write the update that turns the anchor, or an earlier expert, into (nearly, see the module) `trained_ffn`.

    Args:
        path: the update's file.
        anchor: the anchor.
        trained_ffn: the trained tensors, under the anchor's names.
        rows: the routing rows.
        settings: the encoding.
        base: the earlier expert that the update is applied to; None for the anchor.
        before: what the difference is taken against, when that is not what the update is applied to.

    Returns:
        What was written; its scales are those of the least squared error, not tuned.

    Raises:
        ExpertError: tensors or rows do not fit the anchor.
        CodecError: a value is not finite.
        StorageError: the disk is full.
    """
    with stored_tensors(anchor, base) as stored:
        return encode(
            path,
            Difference(trained_ffn, rows, before or values_of(stored), anchor.manifest),
            update_specs(anchor.manifest),
            settings,
            anchor=anchor.digest,
            base=None if base is None else base.contribution,
        )


def read_update(
    path: Path, anchor: Anchor, *, name: str, contribution: str, base: Base | None = None, factor: float = 1.0
) -> Expert:
    """The expert that an update defines, whole in memory; with `factor`, every scale in it times that.

    Raises:
        CodecError: the update is damaged, fits another anchor or base, or makes a value that is not finite.
    """
    digest, specs = None if base is None else base.contribution, expert_specs(anchor.manifest)
    tensors = {spec.name: torch.empty(spec.shape, dtype=_TORCH_DTYPES[spec.dtype]) for spec in specs}
    wanted = update_specs(anchor.manifest)
    with (
        stored_tensors(anchor, base) as stored,
        UpdateReader(path, wanted=wanted, anchor=anchor.digest, base=digest, factor=factor) as update,
    ):
        for spec, start, words in apply(update, stored, specs):
            part = tensor_of(words.tobytes(), spec.dtype)
            tensors[spec.name].view(-1)[start : start + len(part)] = part
    ffn = {spec.name: tensors[spec.name] for spec in anchor.manifest.ffn()}
    return Expert(name=name, contribution=contribution, ffn=ffn, rows=rows_of(tensors, anchor.manifest))


def stored_tensors(anchor: Anchor, base: Base | None = None) -> StoredTensors:
    """What an update changes: the anchor, or the expert that `base` is. A context manager."""
    if base is None:
        return StoredTensors(anchor.files)
    return StoredTensors.of_expert(base.file, anchor.manifest)


def read_expert(path: Path, anchor: Anchor, *, name: str, contribution: str) -> Expert:
    """The expert in a store file, whole in memory; raises ExpertError when the file does not fit the anchor."""
    with TensorReader(path) as reader:
        require_specs(path, reader, expert_specs(anchor.manifest))
        tensors = {spec.name: reader.tensor(spec.name) for spec in reader.specs}
    ffn = {spec.name: tensors[spec.name] for spec in anchor.manifest.ffn()}
    return Expert(name=name, contribution=contribution, ffn=ffn, rows=rows_of(tensors, anchor.manifest))


def soup(ffns: Sequence[Mapping[str, Tensor]], stored: torch.dtype | None = None) -> dict[str, Tensor]:
    """The uniform soup: the mean of the experts' feed-forward tensors in float32, in the dtype that they have.

    It is rounded as experts are, to that dtype, or to `stored` when the tensors at hand were widened for arithmetic.
    Raises ExpertError when there is none to average.
    """
    if not ffns:
        raise ExpertError("saw no expert, wanted at least one to average")
    return {
        name: torch.stack([ffn[name].float() for ffn in ffns]).mean(dim=0).to(stored or tensor.dtype).to(tensor.dtype)
        for name, tensor in ffns[0].items()
    }


@contextmanager
def swap_ffn(model: PreTrainedModel, ffn: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, a dense model of the anchor's architecture runs with `ffn` in place of its own."""
    parameters = {name: model.get_parameter(name) for name in ffn}
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        _copy_into(parameters, ffn)
        yield
    finally:
        _copy_into(parameters, kept)


@torch.no_grad()
def _copy_into(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def rows_of(tensors: Mapping[str, Tensor], manifest: AnchorManifest) -> RoutingRows:
    """The routing in an expert's tensors, under the names of its store file."""
    weight = torch.stack([tensors[router_weight_name(layer)] for layer in range(manifest.layers)])
    bias = torch.cat([tensors[router_bias_name(layer)] for layer in range(manifest.layers)])
    return RoutingRows(weight=weight, bias=bias, tokens=tensors[ROUTER_TOKENS].float())


def tensor_of(data: bytes | bytearray, dtype: str) -> Tensor:
    """Raw bytes as a tensor: in memory of its own, or in a bytearray's, which is given away."""
    owned = data if isinstance(data, bytearray) else bytearray(data)
    return torch.frombuffer(owned, dtype=_TORCH_DTYPES[dtype])


def _require_rows(rows: RoutingRows, manifest: AnchorManifest) -> None:
    if (rows.layers, rows.hidden_size) != (manifest.layers, manifest.hidden_size):
        raise ExpertError(
            f"saw routing rows for {rows.layers} layers {rows.hidden_size} wide, wanted {manifest.layers} layers "
            f"{manifest.hidden_size} wide as in the anchor; fit them on this anchor"
        )


def _require_same(what: str, saw: Mapping[str, tuple[int, ...]], wanted: Iterable[TensorSpec]) -> None:
    expected = {spec.name: spec.shape for spec in wanted}
    if saw != expected:
        name = min(key for key in saw.keys() | expected.keys() if saw.get(key) != expected.get(key))
        raise ExpertError(
            f"saw {name} with shape {saw.get(name)} in {what}, wanted {expected.get(name)}; train on this anchor"
        )
