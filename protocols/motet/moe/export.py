"""The stock export: a composite as a checkpoint that plain transformers loads, Motet nowhere in sight.

Guarantees: equal composites give equal bytes; at most one chunk of a tensor is in memory; the directory appears
complete or not at all. A filter becomes routing token by token. The router's bias, for which stock architectures have
no place, is folded in: the residual stream grows by a few channels that hold one constant from the embedding to the
end, and the router reads its bias from them. Loaded in float32, the export computes what the composite computes, up to
float32 rounding; of a filter, what the composite with `evidence=None` in its configuration computes. Behind a norm no
channel is constant: of a pre-norm family neither bias nor filter is exported unless it is given up (docs/anchors.md).

    export = export_stock(Path("composite"), Path("composite-stock"))
    AutoModelForCausalLM.from_pretrained("composite-stock")
"""

import json
import math
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from motet.moe.composite import MotetForCausalLM
from motet.moe.config import MotetConfig
from motet.moe.families import Family, family_of
from motet.moe.families.family import Treatment
from motet.moe.token_router import TOKEN_ROUTER
from motet.protocols.canonical import storage_errors, sync_directory, write_atomically
from motet.protocols.errors import ExportError
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
CONSTANT = 2.0**-10
"""What the new channels hold: a power of two, so that dividing by it is exact, and small beside activations."""

_PARTS = 3  # bfloat16 pieces that hold every bit of a float32, so that loading in bfloat16 keeps the bias's digits
_CHUNK_BYTES = 4 << 20
_NEGLIGIBLE = 2.0**-8
"""A relative change of epsilon below bfloat16's own rounding: not worth rounding half-precision matrices for."""

_NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_COMPANIONS = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
    *("added_tokens.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "LICENSE", "NOTICE"),
)

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class StockExport:
    """A finished export: where it lies, its hidden size, and what became of the router's bias."""

    directory: Path
    hidden_size: int
    bias: Literal["none", "folded", "dropped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tensor:
    """One tensor of the export: what it is to be, and what yields its bytes."""

    spec: TensorSpec
    chunks: Callable[[], Iterator[bytes]]


def export_stock(composite_directory: Path, out: Path, *, drop_bias: bool = False) -> StockExport:
    """Writes a native composite directory as a stock checkpoint into the new directory `out`.

    `drop_bias` leaves the bias out instead of widening the model: smaller, and no longer the same function.
    Raises ExportError when the composite cannot be expressed or `out` is in use, TensorFileError when its files are
    malformed, StorageError when the disk is full.
    """
    config = _read_config(composite_directory)
    family = family_of(config.anchor.model_type)
    _require_expressible(config, family)
    with ExitStack() as open_files, _new_directory(out) as directory:
        sources = _open_tensors(composite_directory, open_files)
        _check_tensors(sources, config)
        biases = {name: _read(sources[name], name) for name in sources if name.endswith(".mlp.router.bias")}
        bias = _fate_of(biases, family, drop_bias, filters=config.filter is not None)
        width = _wider(config.hidden_size) if bias == "folded" else config.hidden_size
        _write_shards(directory, _plan(sources, biases, family, config, width))
        _write_config(directory, config, family, width)
        for name in _COMPANIONS:
            if (composite_directory / name).is_file():
                shutil.copyfile(composite_directory / name, directory / name)
    return StockExport(directory=out, hidden_size=width, bias=bias)


def _read_config(directory: Path) -> MotetConfig:
    try:
        content = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{directory}: saw no readable config.json ({error}), wanted a composite's; assemble it"
        ) from error
    if not isinstance(content, dict) or content.get("model_type") != MotetConfig.model_type:
        raise ExportError(
            f"{directory}: saw a config.json of another model_type, wanted 'motet'; name a native composite"
        )
    return MotetConfig(**content)


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """A directory beside `out` that takes its name once the block has ended well."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out}: saw something there already, wanted a new or empty directory; name another")
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(6)}.tmp")
    try:
        with storage_errors(out):
            temporary.mkdir(parents=True)
            yield temporary
            temporary.replace(out)
            sync_directory(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_tensors(directory: Path, open_files: ExitStack) -> dict[str, TensorReader]:
    """The reader of every tensor, by name, whether there is an index or a single file."""
    index = directory / INDEX_FILE
    if not index.exists():
        reader = open_files.enter_context(TensorReader(directory / WEIGHTS_FILE))
        return dict.fromkeys(reader.header, reader)
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{index}: saw no weight_map of names to files ({error}); assemble again") from error
    readers: dict[str, TensorReader] = {}
    for name in names:
        if Path(name).name != name:
            raise ExportError(f"{index}: saw the file name {name!r}, wanted one in the same directory; assemble again")
        readers[name] = open_files.enter_context(TensorReader(directory / name))
    return {tensor: readers[file] for tensor, file in weight_map.items()}


def _check_tensors(sources: Mapping[str, TensorReader], config: MotetConfig) -> None:
    with torch.device("meta"):
        model = MotetForCausalLM(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings and "lm_head.weight" not in sources:
        del wanted["lm_head.weight"]
    for name in sorted(wanted.keys() | sources.keys()):
        seen = sources[name].header[name].spec if name in sources and name in sources[name].header else None
        if seen is None or wanted.get(name) != seen.shape or seen.dtype not in _NUMPY:
            raise ExportError(
                f"{name}: saw {'nothing' if seen is None else f'{seen.dtype} {seen.shape}'}, wanted "
                f"{wanted.get(name, 'no such tensor')} in one of {', '.join(_NUMPY)}; assemble the composite again"
            )


def _read(reader: TensorReader, name: str) -> Array:
    """A small tensor as float64."""
    raw = np.frombuffer(b"".join(reader.chunks(name)), _NUMPY[reader.header[name].spec.dtype])
    return _values(raw, reader.header[name].spec.dtype)


def _require_expressible(config: MotetConfig, family: Family) -> None:
    problem = family.stock.problem(config.anchor) or family.routing_problem(normalise=config.normalise_top_k)
    if problem:
        raise ExportError(f"{problem}; use the native form")


def _fate_of(
    biases: Mapping[str, Array], family: Family, drop_bias: bool, *, filters: bool
) -> Literal["none", "folded", "dropped"]:
    biased = any((bias != bias[0]).any() for bias in biases.values())  # what all experts share changes no weight
    if not family.post_norm and (biased or filters) and not drop_bias:
        raise ExportError(
            f"saw {'a filter' if filters else 'a router bias'} in a {family.model_type} composite, wanted none: its "
            "MLPs read normalised states, where no channel is constant; export with --drop-bias, which routes token by "
            "token without bias and reports the cost, or use the native form (docs/anchors.md)"
        )
    if not biased:
        return "none"
    return "dropped" if drop_bias else "folded"


def _wider(hidden_size: int) -> int:
    """The next hidden size with room for the constants whose rows are multiples of 16 bytes in every dtype."""
    return (hidden_size + _PARTS + 7) // 8 * 8


def _plan(
    sources: Mapping[str, TensorReader], biases: Mapping[str, Array], family: Family, config: MotetConfig, width: int
) -> dict[str, list[_Tensor]]:
    """The export's tensors by file, in an order that depends on their names only."""
    shards: dict[str, list[_Tensor]] = {}
    # A filter has no place in a stock architecture: the export routes token by token, with the rows.
    for name in sorted(sources.keys() - biases.keys() - {TOKEN_ROUTER}):
        stored = sources[name].header[name].spec
        treatment = family.stock.treatment(name) if width > config.hidden_size else Treatment()
        if ".mlp.router." in name:
            columns = _bias_columns(biases[name.replace(".weight", ".bias")])
            tensor = _router(sources[name], stored, family.stock.name(name), width, columns)
        else:
            tensor = _widened(sources[name], stored, family.stock.name(name), treatment, config.hidden_size, width)
        shards.setdefault(_shard(name), []).append(tensor)
    return shards


def _shard(name: str) -> str:
    if ".mlp.experts." in name:
        return f"expert-{int(name.split('.mlp.experts.')[1].split('.')[0]):05d}.safetensors"
    return "router.safetensors" if ".mlp.router." in name else "shared.safetensors"


def _bias_columns(bias: Array) -> Array:
    """What the router multiplies the constants with: (experts, parts), together the bias over the constant."""
    rest, parts = bias.astype("<f4"), []
    for _ in range(_PARTS):
        part = (rest.view("<u4") & np.uint32(0xFFFF0000)).view("<f4")  # the leading bits: a bfloat16
        parts.append(part / np.float32(CONSTANT))
        rest = rest - part
    return np.stack(parts, axis=1)


def _router(reader: TensorReader, stored: TensorSpec, name: str, width: int, columns: Array) -> _Tensor:
    experts, hidden = stored.shape

    def chunks() -> Iterator[bytes]:
        weight = np.zeros((experts, width), "<f4")
        weight[:, :hidden] = _read(reader, stored.name).reshape(stored.shape)
        if width > hidden:
            weight[:, hidden : hidden + _PARTS] = columns
        yield weight.tobytes()

    return _Tensor(spec=TensorSpec(name=name, dtype="F32", shape=(experts, width)), chunks=chunks)


def _widened(
    reader: TensorReader, stored: TensorSpec, name: str, treatment: Treatment, hidden: int, width: int
) -> _Tensor:
    axis = treatment.hidden_axis
    shape = tuple(width if number == axis else size for number, size in enumerate(stored.shape))
    matter = len(stored.shape) == 1 or stored.dtype in ("F32", "F64") or (width - hidden) / width > _NEGLIGIBLE
    scaled = treatment.scaled and matter  # into float32, where the factor costs no digits
    dtype = "F32" if scaled and stored.dtype != "F64" else stored.dtype
    if shape == stored.shape and not scaled:
        return _Tensor(spec=TensorSpec(name=name, dtype=dtype, shape=shape), chunks=lambda: reader.chunks(stored.name))

    def chunks() -> Iterator[bytes]:
        row_length = stored.shape[-1] if len(stored.shape) == 2 else 1
        row_bytes = row_length * _NUMPY[stored.dtype].itemsize
        for raw in reader.chunks(stored.name, max(1, _CHUNK_BYTES // row_bytes) * row_bytes):
            rows = np.frombuffer(raw, _NUMPY[stored.dtype]).reshape(-1, row_length)
            if scaled:
                rows = (_values(rows, stored.dtype) * math.sqrt(hidden / width)).astype(_NUMPY[dtype])
            yield _with_columns(rows, shape[-1] if axis == 1 else row_length, dtype, treatment.constant).tobytes()
        if axis == 0:
            yield bytes((width - hidden) * row_length * _NUMPY[dtype].itemsize)

    return _Tensor(spec=TensorSpec(name=name, dtype=dtype, shape=shape), chunks=chunks)


def _with_columns(rows: Array, columns: int, dtype: str, constant: bool) -> Array:
    wide = np.zeros((len(rows), columns), rows.dtype)
    wide[:, : rows.shape[1]] = rows
    if constant:
        bits = np.frombuffer(np.float32(CONSTANT).tobytes(), "<u4")[0] >> 16
        wide[:, rows.shape[1] : rows.shape[1] + _PARTS] = bits if dtype == "BF16" else CONSTANT
    return wide


def _values(stored: Array, dtype: str) -> Array:
    floats = (stored.astype("<u4") << 16).view("<f4") if dtype == "BF16" else stored
    return floats.astype("<f8")


def _write_shards(directory: Path, shards: Mapping[str, list[_Tensor]]) -> None:
    weight_map: dict[str, str] = {}
    for file, tensors in sorted(shards.items()):
        with TensorWriter(directory / file, [tensor.spec for tensor in tensors]) as writer:
            for tensor in tensors:
                writer.write(tensor.spec.name, tensor.chunks())
                weight_map[tensor.spec.name] = file
    total = sum(tensor.spec.nbytes for tensors in shards.values() for tensor in tensors)
    _write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_config(directory: Path, config: MotetConfig, family: Family, width: int) -> None:
    per_token = min(config.experts_per_token or config.num_experts, config.num_experts)
    stock = family.stock.config(
        config.anchor,
        experts=config.num_experts,
        per_token=per_token,
        normalise=config.normalise_top_k,
        width=width,
    )
    stock.dtype = config.dtype
    content = stock.to_diff_dict()
    del content["transformers_version"]  # the bytes are to depend on the composite, not on who exports it
    _write_json(directory / "config.json", content)


def _write_json(path: Path, content: object) -> None:
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")
