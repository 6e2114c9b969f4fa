"""Low-rank experts as plain PEFT adapter directories: adapter_config.json and adapter_model.safetensors.

Guarantees: an adapter is read without running anything of it (pickled files are never opened), and either every tensor
in it is taken up or it is refused with the reason; a directory appears whole or not at all, and PEFT loads it on the
anchor.

    adapter = read_adapter(Path("adapter"), anchor, max_rank=charter.experts.max_rank)
    adapter.factors["model.layers.0.mlp.up_proj.weight"]       # float32, all of one rank, zeros where it has none
    write_adapter(Path("medicine"), expert.factors, base=str(anchor.directory))
    PeftModel.from_pretrained(anchor.model(), "medicine")
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch

from motet.client.adapter_config import AdapterConfig
from motet.moe.anchor import Anchor
from motet.moe.lowrank import Factors, common_rank
from motet.protocols.anchor_manifest import EMBEDDING, PROJECTIONS, AnchorManifest, AnchorTensor
from motet.protocols.canonical import digest_of, file_digest, storage_errors, sync_directory
from motet.protocols.errors import AnchorError, ConfigurationError, ExpertError
from motet.protocols.expert_files import factor_names
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter

CONFIG_NAME, TENSORS_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the names of a base model's modules."""

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
_DTYPES = ("F32", "BF16", "F16")
_HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adapter:
    """A plain adapter that fits the anchor: factors by the anchor's tensor names, all of `rank`, with their scales."""

    factors: Mapping[str, Factors]
    rank: int
    digest: str
    """Names the content of its two files."""
    doubt: str | None = None
    """What speaks against the anchor being its base, though its owner vouches for it; None if nothing does."""


def read_adapter(directory: Path, anchor: Anchor, *, max_rank: int, base_confirmed: bool = False) -> Adapter:
    """Read and check an adapter made elsewhere.

    Args:
        directory: what PEFT's `save_pretrained` wrote.
        anchor: the charter's.
        max_rank: the largest rank that the charter admits.
        base_confirmed: the owner's word that it was trained on this anchor, for where its configuration does not tell,
            or names a folder with tensors of the same shapes and other bytes.

    Raises:
        ExpertError: it is malformed, not finite, of another base, or nothing that a low-rank expert can be.
        ConfigurationError: there is no adapter, or what it was trained on cannot be told.
        TensorFileError: its tensor file is malformed.
    """
    config = AdapterConfig.parse(_configuration(directory))
    doubt = _require_base(config.base, anchor, base_confirmed)
    with TensorReader(directory / TENSORS_NAME) as reader:
        found = _modules(reader, anchor.manifest)
        rank = max(config.rank_of(name.removesuffix(".weight")) for name in found)
        if rank > max_rank:
            raise ExpertError(
                f"saw an adapter of rank {rank}, wanted at most {max_rank} as in the charter; train a smaller one"
            )
        factors = {
            spec.name: _factors(reader, spec, config, rank, spec.name in found) for spec in anchor.manifest.ffn()
        }
    files = [file_digest(directory / name) for name in (CONFIG_NAME, TENSORS_NAME)]
    return Adapter(factors=factors, rank=rank, digest=digest_of(files), doubt=doubt)


def write_adapter(directory: Path, factors: Mapping[str, Factors], *, base: str | None) -> None:
    """Write a low-rank expert as an adapter that PEFT loads on the anchor; its routing rows have no place there.

    Args:
        directory: a new one.
        factors: the expert's, by the anchor's tensor names.
        base: what the configuration names as the adapter's base: the anchor's path or name, None if it is not known.

    Raises:
        ConfigurationError: the directory exists.
        ExpertError: the factors are of several ranks.
        StorageError: the disk is full.
    """
    if directory.exists():
        raise ConfigurationError(f"saw {directory}, wanted a new folder for the adapter; choose another")
    rank = common_rank(factors)
    with storage_errors(directory, new=True):
        directory.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _write_configuration(aside, rank, base)
        _write_tensors(aside / TENSORS_NAME, factors)
        aside.chmod(0o755)
        aside.rename(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_directory(directory.parent)


def _write_configuration(directory: Path, rank: int, base: str | None) -> None:
    from peft import LoraConfig

    with storage_errors(directory):
        LoraConfig(
            r=rank,
            lora_alpha=rank,  # the scale is in B
            target_modules=list(PROJECTIONS),
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
            inference_mode=True,
        ).save_pretrained(str(directory))


def _write_tensors(path: Path, factors: Mapping[str, Factors]) -> None:
    tensors = {}
    for name in sorted(factors):  # so that the same factors are the same file, wherever they were found
        folded = factors[name].folded()
        for stored, tensor in zip(factor_names(name), (folded.a, folded.b), strict=True):
            tensors[PREFIX + stored] = tensor
    specs = [TensorSpec(name=name, dtype="BF16", shape=tuple(tensor.shape)) for name, tensor in tensors.items()]
    with TensorWriter(path, specs) as writer:
        for name, tensor in tensors.items():
            writer.write_tensor(name, tensor)


def _configuration(directory: Path) -> object:
    """The content of adapter_config.json, once the directory holds no file that could run something."""
    pickled = sorted(path.name for pattern in _PICKLED for path in directory.glob(pattern))
    if pickled:
        raise ExpertError(
            f"saw pickled files in {directory}: {', '.join(pickled)}; they can run anything and are never loaded; "
            f"save the adapter with safe_serialization=True, and give a folder with {CONFIG_NAME} and {TENSORS_NAME}"
        )
    for name in (CONFIG_NAME, TENSORS_NAME):
        if not (directory / name).is_file():
            raise ConfigurationError(f"saw no {name} in {directory}, wanted a PEFT adapter's folder; name another")
    try:
        return json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExpertError(f"cannot read {directory / CONFIG_NAME}: {error}; save the adapter again") from error


def _require_base(named: str | None, anchor: Anchor, confirmed: bool) -> str | None:
    """Refuse an adapter of another base, and one whose base is not known to be the anchor unless its owner vouches.

    What speaks against it all the same is returned.
    """
    named = named or None  # an empty name is none, and not the directory that one happens to be in
    manifest = _manifest_of(named)
    if manifest is not None and manifest.digest == anchor.digest:
        return None
    if manifest is not None and (difference := _shapes_apart(manifest, anchor.manifest)):
        raise ExpertError(
            f"saw an adapter for another base, {named}: {difference}; wanted the anchor {anchor.digest}: train it on "
            f"{anchor.directory}"
        )
    doubt = _other_name(named, anchor) if manifest is None else _other_bytes(named, manifest, anchor.manifest)
    if not confirmed:
        saw = "no base" if named is None else f"the base {named!r}"
        why = doubt or "it is no checkpoint that can be compared here"
        raise ConfigurationError(
            f"saw {saw} in {CONFIG_NAME}{'' if named is None else f' ({why})'}, wanted the anchor {anchor.digest}; if "
            "the adapter was trained on that very model, say so with --base-confirmed"
        )
    return doubt


def _shapes_apart(base: AnchorManifest, own: AnchorManifest) -> str | None:
    """Why a base computes with other matrices than the anchor; None if all shapes are the same.

    A head that is tied to the embedding may be saved once or twice.
    """
    theirs, ours = ({tensor.name: tensor.shape for tensor in each.tensors} for each in (base, own))
    for name in sorted(theirs.keys() | ours.keys()):
        if name == _HEAD and (name not in theirs or name not in ours):
            continue
        if theirs.get(name) != ours.get(name):
            saw, wanted = (shapes.get(name, "absent") for shapes in (theirs, ours))
            return f"its {name} is {saw}, the anchor's {wanted}"
    return None


def _other_bytes(named: str | None, base: AnchorManifest, own: AnchorManifest) -> str:
    """What differs in a base of the same shapes."""
    theirs, ours = _with_head(base), _with_head(own)
    changed = [name for name in ours if theirs[name].sha256 != ours[name].sha256]
    if not changed:
        return f"the tensors of {named} are the anchor's, but it was saved otherwise or has another configuration"
    dtypes = sorted({theirs[name].dtype for name in changed} - {ours[name].dtype for name in changed})
    saved = f", saved as {' and '.join(dtypes)}" if dtypes else ""
    return (
        f"{named} has tensors of the anchor's shapes{saved} with other bytes, {len(changed)} of {len(ours)}: a copy in "
        "another dtype, or another model"
    )


def _with_head(manifest: AnchorManifest) -> dict[str, AnchorTensor]:
    """The tensors by name; one that has no head of its own uses its embedding as that."""
    tensors = {tensor.name: tensor for tensor in manifest.tensors}
    return {_HEAD: tensors[EMBEDDING]} | tensors


def _other_name(named: str | None, anchor: Anchor) -> str | None:
    """That a name tells another model than the one that the anchor says it is; None if it does not, or tells none."""
    calls_itself = anchor.config.get("_name_or_path")
    if not named or not isinstance(calls_itself, str) or not calls_itself:
        return None
    if PurePath(named).name.casefold() == PurePath(calls_itself).name.casefold():
        return None
    return f"the adapter names {named} as its base, and the anchor calls itself {calls_itself}"


def _manifest_of(named: str | None) -> AnchorManifest | None:
    """What lies at the path that an adapter names as its base; None when that is no checkpoint like an anchor."""
    if named is None or not (Path(named) / "config.json").is_file():
        return None
    try:
        return AnchorManifest.of(Path(named))
    except AnchorError:
        return None


def _modules(reader: TensorReader, manifest: AnchorManifest) -> list[str]:
    """The anchor's tensors that an adapter's file has factors for; anything else in it is refused."""
    ffn = {spec.name: spec for spec in manifest.ffn()}
    wanted = {PREFIX + stored: name for name in ffn for stored in factor_names(name)}
    for spec in reader.specs:
        if spec.name not in wanted:
            raise ExpertError(f"{spec.name}: {_stranger(spec.name, manifest)}")
    found = [name for name in ffn if all(PREFIX + stored in reader.header for stored in factor_names(name))]
    if not found or 2 * len(found) != len(reader.specs):
        raise ExpertError(
            f"saw {len(reader.specs)} tensors in {reader.path}, wanted lora_A and lora_B for each of some of the "
            "anchor's projections; save the adapter again"
        )
    return found


def _stranger(name: str, manifest: AnchorManifest) -> str:
    """Why a tensor has no place in a low-rank expert."""
    module = name.removeprefix(PREFIX)
    if "lora_magnitude_vector" in module:
        return "saw a magnitude of DoRA, wanted plain LoRA; train without use_dora"
    if module.endswith(".bias"):
        return 'saw a bias, wanted factors alone; train with bias="none"'
    if ".lora_" not in module:
        return "saw a module that was saved whole, wanted factors alone; train without modules_to_save"
    if any(f".mlp.{projection}." in module for projection in PROJECTIONS):
        return (
            f"saw factors of a matrix that the anchor does not have, wanted its {manifest.layers} layers under "
            f"{PREFIX}model.layers; the adapter was trained on another base"
        )
    return f"saw factors of another module, wanted {', '.join(PROJECTIONS)} alone; train with these target_modules"


def _factors(reader: TensorReader, own: TensorSpec, config: AdapterConfig, rank: int, there: bool) -> Factors:
    """One matrix's factors in float32, filled up with zeros to `rank`."""
    (out, into), module = own.shape, own.name.removesuffix(".weight")
    a, b = torch.zeros(rank, into), torch.zeros(out, rank)
    if not there:
        return Factors(a=a, b=b)
    name_a, name_b = (PREFIX + stored for stored in factor_names(own.name))
    stated = config.rank_of(module)
    _require_fit(reader.header[name_a].spec, (stated, into), stated)
    _require_fit(reader.header[name_b].spec, (out, stated), stated)
    a[:stated], b[:, :stated] = reader.tensor(name_a).float(), reader.tensor(name_b).float()
    for name, tensor in ((name_a, a), (name_b, b)):
        if not tensor.isfinite().all():
            raise ExpertError(f"{name}: saw NaN or infinity, wanted finite numbers; look for a diverged loss")
    return Factors(a=a, b=b, scale=config.scale(module, rank=stated))


def _require_fit(saw: TensorSpec, shape: tuple[int, int], rank: int) -> None:
    if saw.shape != shape:
        raise ExpertError(
            f"{saw.name}: saw shape {saw.shape}, wanted {shape} by the anchor and the rank {rank} in {CONFIG_NAME}; "
            "the adapter was trained on another base, or saved half"
        )
    if saw.dtype not in _DTYPES:
        raise ExpertError(f"{saw.name}: saw dtype {saw.dtype}, wanted one of {', '.join(_DTYPES)}; save it again")
