"""Assembly: an anchor and its members become one composite, byte for byte the same whoever assembles it.

Tensors are copied in chunks, one file per expert, ids in the order of contribution digests; nothing enters a file
but what anchor, members and routing policy determine, so a composite made after an expert left equals one that never
had it; the model card in README.md is no exception, for a contribution's digest determines its terms. The folder
appears whole, with every file on disk, or not at all. A tuned router is an exception: it is tagged with the members
that it was tuned with, and goes into no other composite.

    members = [Member(name="medicine", contribution=digest, expert_file=store / "expert.safetensors")]
    composite = assemble(anchor, members, RoutingPolicy.of(charter.routing), home / "composite")
    AutoModelForCausalLM.from_pretrained(composite.path)    # after importing motet.moe.composite
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from motet.coordinator.composite_layout import as_expert, configuration, expert_tensors, shared_tensors
from motet.coordinator.router_file import TunedRouter, write_router
from motet.moe.anchor import Anchor
from motet.moe.card import CARD_FILE, CardRecord, card_experts, native_card
from motet.moe.config import ANCHOR
from motet.moe.prefix import evidence_of, prefix_settings
from motet.protocols.anchor_manifest import tokenizer_files
from motet.protocols.canonical import (
    canonical_json,
    file_digest,
    require_room,
    storage_errors,
    sync_directory,
    write_atomically,
)
from motet.protocols.composite_manifest import (
    MANIFEST_FILE,
    CompositeFile,
    CompositeManifest,
    CompositeMember,
    RoutingPolicy,
    Tuning,
    verify_composite,
)
from motet.protocols.contribution import Terms
from motet.protocols.errors import AssemblyError, ExpertError, TensorFileError
from motet.protocols.expert_files import expert_specs, rank_of, require_specs
from motet.protocols.expert_sizes import ExpertSize, composite_sizes, expert_file
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter

__all__ = ["Composite", "Member", "RoutingPolicy", "TunedRouter", "assemble", "verify_composite"]

Progress = Callable[[int, int], None]
"""Called with the bytes copied so far and in total."""

SHARED_FILE = "shared.safetensors"
ROUTER_FILE = "router.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One admitted expert: its name, its contribution's digest and its store file (see `materialise_file`)."""

    name: str
    contribution: str
    expert_file: Path
    terms: Terms | None = None
    """The contribution's, for the card; None where there is no manifest that tells them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite:
    """An assembled composite: where it lies and what it is."""

    path: Path
    manifest: CompositeManifest

    @property
    def digest(self) -> str:
        """The digest that names the composite."""
        return self.manifest.digest

    @property
    def members(self) -> tuple[CompositeMember, ...]:
        """The experts, in the order of their ids from 1 on."""
        return self.manifest.members

    @property
    def experts(self) -> tuple[ExpertSize, ...]:
        """Every expert's kind, rank, parameters and bytes, by expert id, the anchor's own network first."""
        return composite_sizes(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """One tensor to be copied: from where, under which name, and what it becomes."""

    source: Path
    name: str
    target: TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """What a composite is made of: members in the order of their ids, each of which fits the anchor."""

    anchor: Anchor
    members: tuple[Member, ...]
    described: tuple[CompositeMember, ...]
    """The same members as the manifest tells them."""
    routing: RoutingPolicy
    tuned: TunedRouter | None

    @classmethod
    def of(cls, anchor: Anchor, members: Sequence[Member], routing: RoutingPolicy, tuned: TunedRouter | None) -> Self:
        """Raises AssemblyError for members that are not different, or do not fit the anchor or the tuned router."""
        ordered = sorted(members, key=lambda member: member.contribution)
        _require_different(ordered)
        ranks = [_rank_of(anchor, member) for member in ordered]
        described = tuple(map(_described, ordered, ranks))
        if tuned is not None and (problem := tuned.tag.problem(described)):
            raise AssemblyError(f"{problem}; tune again with the members of now")
        return cls(anchor=anchor, members=tuple(ordered), described=described, routing=routing, tuned=tuned)

    @property
    def ranks(self) -> list[int | None]:
        """Of every member, None for a full expert."""
        return [member.rank for member in self.described]

    @property
    def tag(self) -> Tuning | None:
        """How the router was tuned; None if it was not."""
        return None if self.tuned is None else self.tuned.tag

    def manifest(self, files: Iterable[CompositeFile]) -> CompositeManifest:
        """The composite's manifest, given its files."""
        return CompositeManifest(
            anchor=self.anchor.digest,
            members=self.described,
            routing=self.routing,
            files=tuple(files),
            tuning=self.tag,
        )

    def makes(self, found: CompositeManifest) -> bool:
        """Whether a composite is what this one would become."""
        saw = (found.anchor, found.members, found.routing, found.tuning)
        return saw == (self.anchor.digest, self.described, self.routing, self.tag)


def assemble(
    anchor: Anchor,
    members: Sequence[Member],
    routing: RoutingPolicy,
    out: Path,
    *,
    tuned: TunedRouter | None = None,
    progress: Progress | None = None,
) -> Composite:
    """Assemble the composite of `members` in the new folder `out`; a folder that already is that composite is reused.

    Args:
        anchor, members: what it is made of.
        routing: how it weighs them.
        out: the folder.
        tuned: the router instead of the members' own rows; None concatenates these.
        progress: called with the bytes copied so far and in total.

    Raises:
        AssemblyError: a name or contribution occurs twice, an expert does not fit the anchor, the router was tuned with
            other members or does not fit them, `out` holds something else, or another process is assembling it.
        StorageError: the disk is full or not writable; nothing is left behind.
    """
    recipe = _Recipe.of(anchor, members, routing, tuned)
    if out.exists():
        return _reuse(out, recipe)
    with _workspace(out) as folder:
        _write_composite(folder, recipe, progress or (lambda done, total: None))
        manifest = recipe.manifest(_described_files(folder))
        write_atomically(folder / MANIFEST_FILE, manifest.canonical())
        folder.rename(out)
        sync_directory(out.parent)
    return Composite(path=out, manifest=manifest)


def _require_different(members: Sequence[Member]) -> None:
    for what, values in (
        ("name", [ANCHOR, *(member.name for member in members)]),
        ("contribution", [member.contribution for member in members]),
    ):
        if repeated := {value for value in values if values.count(value) > 1}:
            raise AssemblyError(f"saw the {what} {min(repeated)} twice, wanted each once; leave one of them out")


def _rank_of(anchor: Anchor, member: Member) -> int | None:
    """A member's rank, None for a full expert; raises AssemblyError when its file does not fit the anchor."""
    try:
        with TensorReader(member.expert_file) as reader:
            rank = rank_of(reader.specs)
            require_specs(member.expert_file, reader, expert_specs(anchor.manifest, rank))
            return rank
    except (ExpertError, TensorFileError) as error:
        raise AssemblyError(f"expert {member.name} does not fit the anchor: {error}") from error


def _described(member: Member, rank: int | None) -> CompositeMember:
    """A member as the manifest tells it."""
    expert = file_digest(member.expert_file)
    return CompositeMember(name=member.name, contribution=member.contribution, expert=expert, rank=rank)


def _reuse(out: Path, recipe: _Recipe) -> Composite:
    manifest = verify_composite(out)
    if not recipe.makes(manifest):
        raise AssemblyError(f"saw another composite, {manifest.digest}, in {out}; remove it or name another folder")
    return Composite(path=out, manifest=manifest)


@contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` for this process alone, cleared of what a killed one left, gone after an error."""
    folder = out.with_name(f".{out.name}.partial")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in folder.iterdir():
            path.unlink()
        try:
            with storage_errors(folder):
                yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except BlockingIOError as error:
        raise AssemblyError(f"saw another process assembling {out}; wait for it, then run the command again") from error
    finally:
        os.close(lock)


def _write_composite(folder: Path, recipe: _Recipe, progress: Progress) -> None:
    copies = _plan(recipe)
    total = sum(copy.target.nbytes for file in copies.values() for copy in file)
    require_room(folder.parent, total, "the composite")
    done = 0
    weight_map: dict[str, str] = {}
    for name, file in copies.items():
        for copied in _copy_tensors(folder / name, file):
            done += copied
            progress(done, total)
        weight_map |= {copy.target.name: name for copy in file}
    files = [member.expert_file for member in recipe.members]
    router = write_router(folder / ROUTER_FILE, recipe.anchor, files, recipe.routing, recipe.tuned)
    total += sum(spec.nbytes for spec in router)
    weight_map |= {spec.name: ROUTER_FILE for spec in router}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_atomically(folder / INDEX_FILE, canonical_json(index))
    write_atomically(folder / "config.json", canonical_json(_configuration(recipe)))
    for path in tokenizer_files(recipe.anchor.directory):
        write_atomically(folder / path.name, path.read_bytes())
    write_atomically(folder / CARD_FILE, _card(folder, recipe))


def _card(folder: Path, recipe: _Recipe) -> bytes:
    """The model card of the files in `folder`."""
    contributions, terms = [each.contribution for each in recipe.members], [each.terms for each in recipe.members]
    experts = card_experts(composite_sizes(folder), contributions, terms)
    record = CardRecord(anchor=recipe.anchor.digest, experts=experts, form="native")
    return native_card(record, tuned=recipe.tuned is not None)


def _plan(recipe: _Recipe) -> dict[str, list[_Copy]]:
    """File name -> the tensors it takes; expert 0 is the anchor's own feed-forward network."""
    anchor = recipe.anchor
    shared = shared_tensors(anchor.manifest)
    plan = {SHARED_FILE: [_Copy(source=anchor.file_of(spec.name), name=spec.name, target=spec) for spec in shared]}
    for expert, rank in enumerate((None, *recipe.ranks)):
        plan[expert_file(expert)] = [
            _Copy(
                source=recipe.members[expert - 1].expert_file if expert else anchor.file_of(spec.name),
                name=spec.name,
                target=as_expert(spec, expert),
            )
            for spec in expert_tensors(anchor.manifest, rank)
        ]
    return plan


def _copy_tensors(path: Path, copies: Iterable[_Copy]) -> Iterator[int]:
    """Writes one file; yields the bytes of each tensor as it is done."""
    copies = list(copies)
    with TensorWriter(path, [copy.target for copy in copies]) as writer:
        for copy in copies:
            with TensorReader(copy.source) as reader:
                writer.write(copy.target.name, reader.chunks(copy.name))
            yield copy.target.nbytes


def _configuration(recipe: _Recipe) -> dict[str, object]:
    anchor, routing = recipe.anchor, recipe.routing
    named = {member.contribution: member.name for member in recipe.members}
    evidence = prefix_settings(evidence_of(routing), anchor.config, anchor.tensor)
    return configuration(anchor.config, named, recipe.ranks, routing, evidence=evidence)


def _described_files(folder: Path) -> Iterator[CompositeFile]:
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        yield CompositeFile(name=path.name, size=path.stat().st_size, sha256=file_digest(path))
