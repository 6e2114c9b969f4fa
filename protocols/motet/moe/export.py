"""The stock export: a composite as a checkpoint that plain transformers loads, Motet nowhere in sight.

Guarantees: equal composites give equal bytes; at most one chunk of a tensor is in memory; the directory appears
complete or not at all. What stock architectures have no place for is folded in by widening (`motet.moe.widening`): the
router's bias, and the average of the evidence over the prefix. Loaded in float32, the export computes what the
composite computes, up to float32 rounding. A filter becomes an average over the prefix: its export computes what the
composite with `stock_average(...)` as `evidence` in its configuration computes. Low-rank experts are expanded, piece by
piece, in float32 (`motet.moe.expanded_tensors`). Behind a norm no channel is constant: of a pre-norm family neither
bias nor evidence is exported unless it is given up (docs/anchors.md).

    stock_bytes(specs, config)                              # what it would take, before there is a composite
    export = export_stock(Path("composite"), Path("composite-stock"))
    AutoModelForCausalLM.from_pretrained("composite-stock")
"""

import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from motet.moe.average import Average
from motet.moe.card import CARD_FILE, read_record, stock_card, stock_record
from motet.moe.composite import MotetForCausalLM
from motet.moe.config import MotetConfig
from motet.moe.expanded_tensors import Described, Tensors, with_expansions
from motet.moe.families import Family, family_of
from motet.moe.prefix import prefix_settings
from motet.moe.stock_tensors import NUMPY, StockTensor, read_floats, stock_tensors
from motet.moe.widening import Array, Widening
from motet.protocols.canonical import require_room, storage_errors, sync_directory, write_atomically
from motet.protocols.errors import ExportError
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
_COMPANIONS = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
    *("added_tokens.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "LICENSE", "NOTICE"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StockExport:
    """A finished export: where it lies, its hidden size, and what became of the router's bias."""

    directory: Path
    hidden_size: int
    bias: Literal["none", "folded", "dropped"]


def export_stock(composite_directory: Path, out: Path, *, drop_bias: bool = False) -> StockExport:
    """Writes a native composite directory as a stock checkpoint into the new directory `out`.

    `drop_bias` leaves the bias out, and of a pre-norm family what adds up evidence: no longer the same function.
    Raises ExportError when the composite cannot be expressed or `out` is in use, TensorFileError when its files are
    malformed, StorageError when the disk is full, or has less room than the export takes.
    """
    config = _read_config(composite_directory)
    family = family_of(config.anchor.model_type)
    _require_expressible(config, family)
    with ExitStack() as open_files, _new_directory(out) as directory:
        stored = _open_tensors(composite_directory, open_files)
        _check_tensors(stored, config)
        sources = with_expansions(stored, config)
        average = _average(config, family, sources)
        biases = _biases(config, sources, average)
        bias = _fate_of(biases, family, drop_bias, counted=config.prefix is not None)
        widening = Widening.of(config, average=average, constant=bias == "folded")
        shards = stock_tensors(sources, biases, family, widening)
        require_room(directory.parent, _total(shards), "the stock export")
        _write_shards(directory, shards)
        _write_config(directory, config, family, widening)
        record = stock_record(config, read_record(composite_directory), directory)
        write_atomically(directory / CARD_FILE, stock_card(record, architecture=family.stock.architecture))
        for name in _COMPANIONS:
            if (composite_directory / name).is_file():
                shutil.copyfile(composite_directory / name, directory / name)
    return StockExport(directory=out, hidden_size=widening.width, bias=bias)


def stock_bytes(tensors: Iterable[TensorSpec], config: MotetConfig, *, drop_bias: bool = False) -> int:
    """The bytes of the tensors that `export_stock` would write of a composite of these tensors and this configuration.

    Nothing is read, so rows that may have a bias count as having one. Raises ExportError as `export_stock` does.
    """
    family = family_of(config.anchor.model_type)
    _require_expressible(config, family)
    described = Described(tensors)
    sources = with_expansions(dict.fromkeys(described.header, described), config)
    average = Average() if config.prefix and family.post_norm else None
    own_rows = average is None and family.post_norm  # behind a norm, admission takes rows without bias only
    bias = np.arange(config.num_experts) if own_rows else np.array(config.priors)
    biases = {name: bias for name in sources if name.endswith(".mlp.router.bias")}
    fate = _fate_of(biases, family, drop_bias, counted=config.prefix is not None)
    widening = Widening.of(config, average=average, constant=fate == "folded")
    return _total(stock_tensors(sources, biases, family, widening))


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
        if seen is None or wanted.get(name) != seen.shape or seen.dtype not in NUMPY:
            raise ExportError(
                f"{name}: saw {'nothing' if seen is None else f'{seen.dtype} {seen.shape}'}, wanted "
                f"{wanted.get(name, 'no such tensor')} in one of {', '.join(NUMPY)}; assemble the composite again"
            )


def _average(config: MotetConfig, family: Family, sources: Mapping[str, Tensors]) -> Average | None:
    """The average that the export has; None where the layers' rows decide, or none can be had."""
    if not config.prefix or not family.post_norm:
        return None
    return stock_average(config, lambda name: sources[name].tensor(name))


def stock_average(config: MotetConfig, tensor: Callable[[str], torch.Tensor]) -> Average:
    """The average that stands in an export for what a composite's configuration names as its evidence.

    `tensor` gives the composite's tensors by name. Raises AssemblyError for an anchor without post-norms.
    """
    if isinstance(config.prefix, Average):
        return config.prefix
    settings = prefix_settings(Average(), config.anchor.to_dict(), tensor)
    return Average(**(settings or {}))


def _biases(config: MotetConfig, sources: Mapping[str, Tensors], average: Average | None) -> dict[str, Array]:
    """By name, in nats: the routers' own, or beside an average the log priors alone."""
    names = [name for name in sources if name.endswith(".mlp.router.bias")]
    return {name: read_floats(sources[name], name) if average is None else np.array(config.priors) for name in names}


def _require_expressible(config: MotetConfig, family: Family) -> None:
    problem = family.stock.problem(config.anchor) or family.routing_problem(normalise=config.normalise_top_k)
    if problem:
        raise ExportError(f"{problem}; use the native form")


def _fate_of(
    biases: Mapping[str, Array], family: Family, drop_bias: bool, *, counted: bool
) -> Literal["none", "folded", "dropped"]:
    biased = any((bias != bias[0]).any() for bias in biases.values())  # what all experts share changes no weight
    if not family.post_norm and (biased or counted) and not drop_bias:
        raise ExportError(
            f"saw {'evidence over the prefix' if counted else 'a router bias'} in a {family.model_type} composite, "
            "wanted none: its MLPs read normalised states, where no channel is constant; export with --drop-bias, "
            "which routes token by token without bias and reports the cost, or make the native form alone, with "
            "--no-stock (docs/anchors.md)"
        )
    if not biased:
        return "none"
    return "dropped" if drop_bias else "folded"


def _write_shards(directory: Path, shards: Mapping[str, list[StockTensor]]) -> None:
    weight_map: dict[str, str] = {}
    for file, tensors in sorted(shards.items()):
        with TensorWriter(directory / file, [tensor.spec for tensor in tensors]) as writer:
            for tensor in tensors:
                writer.write(tensor.spec.name, tensor.chunks())
                weight_map[tensor.spec.name] = file
    _write_json(directory / INDEX_FILE, {"metadata": {"total_size": _total(shards)}, "weight_map": weight_map})


def _total(shards: Mapping[str, list[StockTensor]]) -> int:
    return sum(tensor.spec.nbytes for tensors in shards.values() for tensor in tensors)


def _write_config(directory: Path, config: MotetConfig, family: Family, widening: Widening) -> None:
    per_token = min(config.experts_per_token or config.num_experts, config.num_experts)
    stock = family.stock.config(
        config.anchor,
        experts=config.num_experts,
        per_token=per_token,
        normalise=config.normalise_top_k,
        widening=widening,
    )
    stock.dtype = config.dtype
    content = stock.to_diff_dict()
    del content["transformers_version"]  # the bytes are to depend on the composite, not on who exports it
    _write_json(directory / "config.json", content)


def _write_json(path: Path, content: object) -> None:
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")
