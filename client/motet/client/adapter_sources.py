"""Where a low-rank expert is found that is to become a PEFT adapter: an outbox, a file, or a composite.

found = lowrank_in(Path("owner"))                                       # its newest contribution
found = lowrank_in(Path("medicine.motet"), anchor=Path("anchor"))       # a container, an update, a store file
found = lowrank_in(Path("composite"), expert="medicine")
write_adapter(Path("adapter"), found.factors, base=found.base)
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from motet.client.outbox import find_packed
from motet.client.owner import CONFIG_FILE, OwnerHome
from motet.moe.anchor import Anchor
from motet.moe.lowrank import Factors, LowRankExpert, read_lowrank_update, read_stored
from motet.protocols.anchor_manifest import PROJECTIONS, checkpoint_files
from motet.protocols.canonical import open_regular
from motet.protocols.codec import UpdateReader
from motet.protocols.codec.frames import MAGIC
from motet.protocols.errors import AssemblyError, ConfigurationError, ExpertError, ExpertSetError
from motet.protocols.expert_files import factor_names, rank_of
from motet.protocols.tensor_files import TensorReader
from motet.protocols.update_files import opened

_FULL = "saw a full expert, wanted a low-rank one: an adapter is two factors for every matrix; take another expert"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """A low-rank expert's factors by the anchor's names, and the path of the anchor if that is known."""

    factors: Mapping[str, Factors]
    base: Path | None


def lowrank_in(source: Path, *, anchor: Path | None = None, expert: str | None = None) -> Found:
    """The low-rank expert in `source`.

    Args:
        source: an owner's home, a composite's folder, an update file, a container, or an expert's store file.
        anchor: the anchor's folder; files need it, a home has its own, and a composite does without.
        expert: a composite's member by name, or a contribution of a home by its digest, the newest if None.

    Raises:
        ConfigurationError: `source` is none of these, or the anchor or the expert's name is missing.
        ExpertError: the expert is a full one, or does not fit the anchor.
        ExpertSetError: the composite has no such expert.
        CodecError, AnchorError, AssemblyError, TensorFileError: a file is damaged.
    """
    if (source / CONFIG_FILE).is_file():
        home = OwnerHome.load(source)
        return _in_file(find_packed(home, expert).update, anchor or home.anchor)
    if source.is_dir():
        return Found(factors=_in_composite(source, expert), base=anchor)
    if not source.is_file():
        raise ConfigurationError(
            f"saw nothing at {source}, wanted an owner's home, a composite or a file; name another"
        )
    if anchor is None:
        raise ConfigurationError("saw no anchor, wanted the folder of the one that the expert changes; give --anchor")
    with opened(source) as update:
        return _in_file(update.path, anchor)


def _in_file(path: Path, directory: Path) -> Found:
    anchor = Anchor.load(directory)
    with open_regular(path) as file:
        is_update = file.read(len(MAGIC)) == MAGIC
    read = _update if is_update else read_stored
    expert = read(path, anchor, name="", contribution="")
    if not isinstance(expert, LowRankExpert):
        raise ExpertError(f"{path}: {_FULL}")
    return Found(factors=expert.factors, base=directory)


def _update(path: Path, anchor: Anchor, *, name: str, contribution: str) -> LowRankExpert:
    with UpdateReader(path) as update:
        if rank_of(update.specs) is None:
            raise ExpertError(f"{path}: {_FULL}")
    return read_lowrank_update(path, anchor, name=name, contribution=contribution)


def _in_composite(directory: Path, name: str | None) -> dict[str, Factors]:
    """One member's factors, read where they lie; nothing else of the composite is."""
    config = _composite_config(directory)
    names, ranks = config["expert_names"], config.get("expert_ranks")
    if name not in names:
        raise ExpertSetError(f"saw expert {name!r}, wanted one of {', '.join(names)} of {directory}; give --expert")
    number = names.index(name)
    if not ranks or ranks[number] is None:
        raise ExpertError(f"{directory}: {name}: {_FULL}")
    found: dict[str, Tensor] = {}
    for path in checkpoint_files(directory):
        with TensorReader(path) as reader:
            found |= {spec.name: reader.tensor(spec.name) for spec in reader.specs if _is_factor(spec.name, number)}
    stems = sorted({re.sub(r"\.lora_[AB]\.weight$", ".weight", stored) for stored in found})
    factors = {}
    for stem in stems:
        a, b = factor_names(stem)
        factors[stem.replace(f".experts.{number}.", ".")] = Factors(a=found[a], b=found[b])
    return factors


def _is_factor(name: str, number: int) -> bool:
    projections = "|".join(PROJECTIONS)
    return bool(re.fullmatch(rf"model\.layers\.\d+\.mlp\.experts\.{number}\.({projections})\.lora_[AB]\.weight", name))


def _composite_config(directory: Path) -> dict[str, Any]:
    """A native composite's configuration, with as many ranks as names, if it has ranks."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AssemblyError(f"cannot read a composite from {directory}: {error}; fetch it again") from error
    if not isinstance(config, dict) or config.get("model_type") != "motet" or not _is_list(config, "expert_names"):
        raise AssemblyError(f"saw no composite in {directory}, wanted a native one; name its folder")
    if config.get("expert_ranks"):
        ranks = len(config["expert_ranks"]) if _is_list(config, "expert_ranks") else "no list of"
        if ranks != len(config["expert_names"]):
            raise AssemblyError(
                f"saw {ranks} expert_ranks in {directory / 'config.json'}, wanted {len(config['expert_names'])} as its "
                "expert_names are; fetch the composite again"
            )
    return config


def _is_list(config: dict[str, Any], key: str) -> bool:
    return isinstance(config.get(key), list)
