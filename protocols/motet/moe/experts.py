"""Experts as differences to the anchor's feed-forward layers.

The update *defines* the expert: float32 anchor plus float32 difference, rounded to the anchor's dtype. Owner and
coordinator compute the same bits from the same update, and every figure is measured after that rounding.

    write_update(path, anchor, trained_ffn, rows)               # the owner: one bf16 difference per tensor
    materialise_file(path, anchor, store / "expert.safetensors")  # the coordinator: once, at admission
    expert = read_expert(store / "expert.safetensors", anchor, name="medicine", contribution=digest)
    with swap_ffn(model, expert.ffn):
        ...                                                     # the anchor with this expert alone
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from motet.moe.anchor import Anchor
from motet.moe.routing import RoutingRows
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.errors import ExpertError
from motet.protocols.tensor_files import DTYPE_BYTES, TensorReader, TensorSpec, TensorWriter

CHUNK_VALUES = 1 << 18
"""Values materialised at a time: what bounds memory, whatever the size of a tensor."""

_TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


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


def router_weight_name(layer: int) -> str:
    """The name of a layer's routing row in an update and in an expert's store file: (hidden,) F32."""
    return f"model.layers.{layer}.mlp.router.weight"


def router_bias_name(layer: int) -> str:
    """The name of a layer's routing intercept in an update and in an expert's store file: (1,) F32."""
    return f"model.layers.{layer}.mlp.router.bias"


def update_specs(manifest: AnchorManifest) -> list[TensorSpec]:
    """Exactly what an update of a full expert holds: bf16 differences under the anchor's names, and F32 rows."""
    differences = [TensorSpec(name=spec.name, dtype="BF16", shape=spec.shape) for spec in manifest.ffn()]
    return differences + _row_specs(manifest)


def expert_specs(manifest: AnchorManifest) -> list[TensorSpec]:
    """Exactly what an expert's store file holds: the feed-forward tensors in the anchor's dtype, and F32 rows."""
    return manifest.ffn() + _row_specs(manifest)


def difference(anchor_ffn: Mapping[str, Tensor], trained_ffn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What training changed, tensor by tensor: subtracted in float32, rounded to bf16."""
    return {name: (trained_ffn[name].float() - tensor.float()).bfloat16() for name, tensor in anchor_ffn.items()}


def materialise(anchor: Tensor, update: Tensor) -> Tensor:
    """The expert's tensor that an update's difference defines, in the anchor's dtype."""
    return (anchor.float() + update.float()).to(anchor.dtype)


def write_update(path: Path, anchor: Anchor, trained_ffn: Mapping[str, Tensor], rows: RoutingRows) -> None:
    """Write the update that turns the anchor into (nearly, see the module) `trained_ffn`.

    Raises ExpertError when tensors or rows do not fit the anchor or are not finite, StorageError when the disk is full.
    """
    wanted = anchor.manifest.ffn()
    _require_same("the trained tensors", {name: tuple(t.shape) for name, t in trained_ffn.items()}, wanted)
    _require_rows(rows, anchor.manifest)
    with TensorWriter(path, update_specs(anchor.manifest)) as writer:
        for spec in wanted:
            stored = {spec.name: anchor.tensor(spec.name)}
            (update,) = difference(stored, {spec.name: trained_ffn[spec.name].detach().cpu()}).values()
            writer.write_tensor(spec.name, _finite(spec.name, update))
        for layer in range(anchor.manifest.layers):
            writer.write_tensor(router_weight_name(layer), rows.weight[layer])
            writer.write_tensor(router_bias_name(layer), rows.bias[layer : layer + 1])


def materialise_file(update: Path, anchor: Anchor, out: Path) -> None:
    """Turn an update into the expert's store file, a few megabytes at a time.

    Raises ExpertError naming the tensor when the update does not fit the anchor or a value is not finite (then there is
    no file), TensorFileError when the update is malformed, StorageError when the disk is full.
    """
    with TensorReader(update) as reader:
        require_specs(update, reader, update_specs(anchor.manifest))
        with TensorWriter(out, expert_specs(anchor.manifest)) as writer:
            for spec in anchor.manifest.ffn():
                with TensorReader(anchor.file_of(spec.name)) as stored:
                    writer.write(spec.name, _materialised_chunks(stored, reader, spec))
            for spec in _row_specs(anchor.manifest):
                writer.write_tensor(spec.name, _finite(spec.name, reader.tensor(spec.name)))


def read_update(path: Path, anchor: Anchor, *, name: str, contribution: str) -> Expert:
    """The expert that an update defines, whole in memory; raises as `materialise_file` does."""
    with TensorReader(path) as reader:
        require_specs(path, reader, update_specs(anchor.manifest))
        ffn = {
            spec.name: _finite(spec.name, materialise(anchor.tensor(spec.name), reader.tensor(spec.name)))
            for spec in anchor.manifest.ffn()
        }
        return Expert(name=name, contribution=contribution, ffn=ffn, rows=_read_rows(reader, anchor.manifest))


def read_expert(path: Path, anchor: Anchor, *, name: str, contribution: str) -> Expert:
    """The expert in a store file, whole in memory; raises ExpertError when the file does not fit the anchor."""
    with TensorReader(path) as reader:
        require_specs(path, reader, expert_specs(anchor.manifest))
        ffn = {spec.name: reader.tensor(spec.name) for spec in anchor.manifest.ffn()}
        return Expert(name=name, contribution=contribution, ffn=ffn, rows=_read_rows(reader, anchor.manifest))


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


def require_specs(path: Path, reader: TensorReader, wanted: Sequence[TensorSpec]) -> None:
    """Refuse a file that holds anything but `wanted`, in any order; raises ExpertError for the first difference."""
    saw, expected = {spec.name: spec for spec in reader.specs}, {spec.name: spec for spec in wanted}
    for name in sorted(saw.keys() | expected.keys()):
        if saw.get(name) != expected.get(name):
            raise ExpertError(
                f"{path}: {name}: saw {_describe(saw.get(name))}, wanted {_describe(expected.get(name))}; "
                "pack the expert again on the charter's anchor"
            )


@torch.no_grad()
def _copy_into(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _row_specs(manifest: AnchorManifest) -> list[TensorSpec]:
    specs = []
    for layer in range(manifest.layers):
        specs.append(TensorSpec(name=router_weight_name(layer), dtype="F32", shape=(manifest.hidden_size,)))
        specs.append(TensorSpec(name=router_bias_name(layer), dtype="F32", shape=(1,)))
    return specs


def _read_rows(reader: TensorReader, manifest: AnchorManifest) -> RoutingRows:
    weight = torch.stack([reader.tensor(router_weight_name(layer)) for layer in range(manifest.layers)])
    bias = torch.cat([reader.tensor(router_bias_name(layer)) for layer in range(manifest.layers)])
    return RoutingRows(weight=weight, bias=bias)


def _materialised_chunks(stored: TensorReader, update: TensorReader, spec: TensorSpec) -> Iterator[bytes]:
    """The raw bytes of one materialised tensor. The sum is element by element, so chunks change nothing."""
    dtype = _TORCH_DTYPES[spec.dtype]
    pairs = zip(
        stored.chunks(spec.name, CHUNK_VALUES * DTYPE_BYTES[spec.dtype]),
        update.chunks(spec.name, CHUNK_VALUES * DTYPE_BYTES["BF16"]),
        strict=True,
    )
    for anchor_bytes, update_bytes in pairs:
        anchor = torch.frombuffer(bytearray(anchor_bytes), dtype=dtype)
        change = torch.frombuffer(bytearray(update_bytes), dtype=torch.bfloat16)
        expert = _finite(spec.name, materialise(anchor, change))
        yield expert.view(torch.uint8).numpy().tobytes()


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not tensor.isfinite().all():
        raise ExpertError(
            f"{name}: saw NaN or infinity, wanted finite values only; look for a diverged loss, train again, pack again"
        )
    return tensor


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


def _describe(spec: TensorSpec | None) -> str:
    return "no such tensor" if spec is None else f"{spec.dtype} {spec.shape}"
