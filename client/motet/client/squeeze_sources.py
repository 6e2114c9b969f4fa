"""Where an expert lies that is to be made low-rank: an owner's home, a file, or a composite.

Guarantees: of a full expert no more than one tensor is read at a time, and only when it is asked for; what is known to
belong to another anchor is refused.

    with packed_source(find_packed(home), home, anchor) as source: ...
    with file_source(Path("composite"), anchor, expert="medicine") as source:     # or an update, a store file
        source.rank, source.rows
        decompose(source.parts(anchor), rank=16)
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from motet.client.lowrank import Expansion
from motet.client.outbox import Packed
from motet.client.owner import OwnerHome
from motet.client.training import TrainedExpert
from motet.client.versions import Versions
from motet.moe.anchor import Anchor
from motet.moe.composition import expert_tensor_name, factor_tensor_names, router_tensor_names
from motet.moe.config import ANCHOR, MotetConfig
from motet.moe.experts import rows_of, stored_tensors
from motet.moe.lowrank import Factors, LowRankExpert, common_rank, read_stored
from motet.moe.routing import RoutingRows
from motet.moe.squeeze import changes
from motet.moe.token_router import TOKEN_ROUTER
from motet.protocols.anchor_manifest import checkpoint_files
from motet.protocols.canonical import file_digest, open_regular
from motet.protocols.codec.frames import MAGIC
from motet.protocols.composite_manifest import MANIFEST_FILE, read_composite_manifest
from motet.protocols.errors import AssemblyError, ConfigurationError, ExpertError, ExpertSetError
from motet.protocols.expert_files import expert_specs, materialise_file, rank_of, require_specs
from motet.protocols.tensor_files import TensorReader, read_header
from motet.protocols.update_files import opened, rank_in

STORE_NAME = "expert.safetensors"
LEAST_COSINE = 0.05
"""Between an expert's weights and its anchor's: what training leaves is far above it, what chance makes far below."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SourceExpert:
    """An expert of either kind, and what it is called."""

    name: str
    digest: str
    """Names its content."""
    ffn: Mapping[str, Tensor]
    """Its whole networks under the anchor's names, each read or made when it is asked for."""
    rows: RoutingRows
    factors: Mapping[str, Factors] | None = None
    """A low-rank expert's; None for a full one."""

    @property
    def rank(self) -> int | None:
        """A low-rank expert's; None for a full one."""
        return None if self.factors is None else common_rank(self.factors)

    def parts(self, anchor: Anchor) -> Iterable[tuple[str, Tensor | Factors]]:
        """What it changes, matrix by matrix: differences, or factors of them."""
        return changes(anchor, self.ffn) if self.factors is None else self.factors.items()


class Lazy(Mapping[str, Tensor]):
    """Tensors in files, read when they are asked for: name -> the file, and what it calls the tensor."""

    def __init__(self, places: Mapping[str, tuple[Path, str]]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> Tensor:
        path, stored = self._places[name]
        with TensorReader(path) as reader:
            return reader.tensor(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def trained_source(name: str, trained: TrainedExpert) -> SourceExpert:
    """An expert as training left it, before any encoding."""
    digest = trained.fingerprint
    return SourceExpert(name=name, digest=digest, ffn=trained.ffn, rows=trained.rows, factors=trained.factors)


@contextmanager
def packed_source(packed: Packed, home: OwnerHome, anchor: Anchor) -> Iterator[SourceExpert]:
    """A contribution of the outbox, as its update defines it.

    Raises:
        ConfigurationError: it is a change to an earlier version, and no longer kept whole.
        CodecError, ExpertError: its update is damaged, or of another anchor.
    """
    kept = {version.contribution: version.base.file for version in Versions.of(home, anchor).all()}
    name = packed.contribution.name
    if packed.digest in kept:
        yield _of_store(kept[packed.digest], anchor, name=name, digest=packed.digest)
        return
    if packed.contribution.base is not None:
        raise ConfigurationError(
            f"saw {packed.digest} as a change to {packed.contribution.base}, which is no longer in {home.work}; "
            "squeeze the expert as it was trained, or another contribution"
        )
    with _of_update(packed.update, anchor, name=name, digest=packed.digest) as source:
        yield source


@contextmanager
def file_source(path: Path, anchor: Anchor, *, expert: str | None = None) -> Iterator[SourceExpert]:
    """An expert in an update, a container or a store file, or a member of a composite's folder by its name.

    Raises:
        ConfigurationError: there is nothing at `path`.
        ExpertError: it does not fit the anchor.
        ExpertSetError: the composite has no such expert.
        CodecError, AssemblyError, TensorFileError: it is damaged, or of another anchor.
    """
    if path.is_dir():
        yield _of_composite(path, anchor, expert)
        return
    if not path.is_file():
        raise ConfigurationError(
            f"saw nothing at {path}, wanted an expert's file or a composite's folder; name another"
        )
    with opened(path) as found:
        name = path.stem if found.contribution is None else found.contribution.name
        with open_regular(found.path) as file:
            is_update = file.read(len(MAGIC)) == MAGIC
        if not is_update:
            source = _of_store(path, anchor, name=name, digest=file_digest(path))
            _require_alike(path, source, anchor)
            yield source
            return
        with _of_update(found.path, anchor, name=name, digest=file_digest(found.path)) as source:
            yield source


@contextmanager
def _of_update(path: Path, anchor: Anchor, *, name: str, digest: str) -> Iterator[SourceExpert]:
    """The expert that an update to the anchor defines, kept aside as a store would keep it."""
    with tempfile.TemporaryDirectory(prefix="motet-squeeze-") as folder, stored_tensors(anchor) as stored:
        whole = Path(folder) / STORE_NAME
        materialise_file(path, anchor.manifest, stored, whole, rank=rank_in(path))
        yield _of_store(whole, anchor, name=name, digest=digest)


def _of_store(path: Path, anchor: Anchor, *, name: str, digest: str) -> SourceExpert:
    with TensorReader(path) as reader:
        if rank_of(reader.specs) is None:
            require_specs(path, reader, expert_specs(anchor.manifest))
            routing = {spec.name: reader.tensor(spec.name) for spec in reader.specs if ".router." in spec.name}
            ffn = Lazy({spec.name: (path, spec.name) for spec in anchor.manifest.ffn()})
            return SourceExpert(name=name, digest=digest, ffn=ffn, rows=rows_of(routing, anchor.manifest))
    expert = read_stored(path, anchor, name=name, contribution=digest)
    assert isinstance(expert, LowRankExpert)  # noqa: S101 - it has a rank
    return _low_rank(name, digest, anchor, expert.factors, expert.rows)


def _require_alike(path: Path, source: SourceExpert, anchor: Anchor) -> None:
    """Refuse a full expert that has nothing in common with the anchor: a store file does not say whose it is."""
    if source.factors is not None:
        return
    sums = torch.zeros(3, dtype=torch.float64)
    for spec in anchor.manifest.ffn():
        expert, own = source.ffn[spec.name].double(), anchor.tensor(spec.name).double()
        sums += torch.stack([(expert * own).sum(), expert.square().sum(), own.square().sum()])
    cosine = float(sums[0] / (sums[1] * sums[2]).sqrt())
    if cosine < LEAST_COSINE:
        raise ExpertError(
            f"saw an expert in {path} that has nothing in common with this anchor (cosine {cosine:.3f}), wanted one "
            f"trained from it, {LEAST_COSINE} at least; name the anchor that it was trained on"
        )


def _low_rank(
    name: str, digest: str, anchor: Anchor, factors: Mapping[str, Factors], rows: RoutingRows
) -> SourceExpert:
    return SourceExpert(name=name, digest=digest, ffn=Expansion(anchor, factors), rows=rows, factors=factors)


def _of_composite(directory: Path, anchor: Anchor, name: str | None) -> SourceExpert:
    """One member, its tensors where they lie; the composite's own copy of the anchor tells whether it is the same."""
    config = _composite_config(directory)
    members = [each for each in config.names if each != ANCHOR]
    if name not in members:
        raise ExpertSetError(f"saw expert {name!r}, wanted one of {', '.join(members)} of {directory}; give --expert")
    number = config.names.index(name)
    files = {stored: path for path in checkpoint_files(directory) for stored in read_header(path)}
    _require_same_anchor(directory, files, anchor)
    _require_own_rows(directory, name)
    rows, digest = _composite_rows(files, config, number), config.contributions[number - 1]  # type: ignore[index]
    names = [spec.name for spec in anchor.manifest.ffn()]
    if config.ranks[number] is None:
        ffn = Lazy({each: _place(files, expert_tensor_name(each, number)) for each in names})
        return SourceExpert(name=name, digest=digest, ffn=ffn, rows=rows)
    factors = {}
    for each in names:
        places = {stored: _place(files, stored) for stored in factor_tensor_names(each, number)}
        a, b = Lazy(places).values()
        factors[each] = Factors(a=a, b=b)
    return _low_rank(name, digest, anchor, factors, rows)


def _place(files: Mapping[str, Path], stored: str) -> tuple[Path, str]:
    if stored not in files:
        raise AssemblyError(f"saw no tensor {stored} in the composite, wanted all of its experts; fetch it again")
    return files[stored], stored


def _composite_config(directory: Path) -> MotetConfig:
    try:
        config = MotetConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise AssemblyError(f"cannot read a composite from {directory}: {error}; fetch it again") from error
    if config.num_experts < 2:
        raise AssemblyError(f"saw no experts in {directory}, wanted a native composite; name its folder")
    return config


def _require_same_anchor(directory: Path, files: Mapping[str, Path], anchor: Anchor) -> None:
    for spec in anchor.manifest.ffn():
        path, stored = _place(files, expert_tensor_name(spec.name, 0))
        with TensorReader(path) as reader:
            if not torch.equal(reader.tensor(stored), anchor.tensor(spec.name)):
                raise ExpertError(
                    f"saw a composite of another anchor in {directory}, wanted {anchor.digest}; name its anchor"
                )


def _require_own_rows(directory: Path, name: str) -> None:
    """Refuse a composite whose router was tuned: its rows are of all members together, and none's own."""
    if not (directory / MANIFEST_FILE).exists():  # saved from memory, and never tuned
        return
    if read_composite_manifest(directory).tuning is not None:
        raise ExpertError(
            f"saw a composite in {directory} whose router was tuned for all of its members together, wanted the "
            f"routing rows that {name!r} was made with; squeeze the owner's own update, container or store file, or "
            "the home, and tune again with what comes of it"
        )


def _composite_rows(files: Mapping[str, Path], config: MotetConfig, number: int) -> RoutingRows:
    """A member's routing: its rows in every layer, the log prior taken out of the intercepts again."""
    names = [router_tensor_names(layer) for layer in range(config.anchor.num_hidden_layers)]
    stored = Lazy({each: _place(files, each) for pair in names for each in pair})
    weight = torch.stack([stored[row][number].float() for row, _ in names])
    bias = torch.stack([stored[intercept][number].float() for _, intercept in names]) - config.priors[number]
    tokens = None if config.prefix is None else Lazy({"": _place(files, TOKEN_ROUTER)})[""][number].float()
    return RoutingRows(weight=weight, bias=bias, tokens=tokens)
