"""An owner's expert, wherever it lies: packed in the outbox, in a file, or as a PEFT adapter trained elsewhere.

    source = find_source(home, adapter=Path("adapter"))       # the outbox's newest without a path; None if it is empty
    expert = read_source(source, home, name="medicine")       # of either kind, with its routing rows

An adapter has no rows; they are measured on the owner's text, as for a contribution. Nothing leaves.
"""

from dataclasses import dataclass
from pathlib import Path

from motet.client.adapters import read_adapter
from motet.client.outbox import Packed, packed_contributions
from motet.client.owner import OwnerHome
from motet.client.preparation import fetch_anchor, open_anchor, prepare
from motet.client.versions import Versions
from motet.moe.anchor import Anchor
from motet.moe.experts import read_update
from motet.moe.lowrank import AnyExpert, LowRankExpert, read_lowrank_update, read_stored
from motet.protocols.canonical import file_digest, open_regular
from motet.protocols.codec import UpdateReader
from motet.protocols.codec.frames import MAGIC
from motet.protocols.errors import ConfigurationError
from motet.protocols.expert_files import rank_of
from motet.protocols.update_files import opened


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the expert lies; one of the three is given.

    file: an update, a container, or an expert's store file.
    base_confirmed: the owner's word that the adapter was trained on the charter's anchor.
    """

    packed: Packed | None = None
    file: Path | None = None
    adapter: Path | None = None
    base_confirmed: bool = False


def find_source(
    home: OwnerHome, *, file: Path | None = None, adapter: Path | None = None, base_confirmed: bool = False
) -> Source | None:
    """What was named, else the newest contribution in the outbox; None if there is none.

    Raises:
        ConfigurationError: both were named, or what was named does not exist.
    """
    if file is not None and adapter is not None:
        raise ConfigurationError("saw an expert's file and an adapter, wanted one of them; leave the other out")
    for path, what, there in ((file, "file", Path.is_file), (adapter, "folder", Path.is_dir)):
        if path is not None and not there(path):
            raise ConfigurationError(f"saw no {what} {path}, wanted the expert there; name another")
    if file is not None or adapter is not None:
        return Source(file=file, adapter=adapter, base_confirmed=base_confirmed)
    packed = packed_contributions(home)
    return Source(packed=packed[-1]) if packed else None


def read_source(source: Source, home: OwnerHome, *, name: str) -> AnyExpert:
    """Read the expert, called `name`; the anchor is fetched if it is not there.

    Raises:
        ExpertError, CodecError, TensorFileError: it does not fit the charter's anchor, or is damaged.
        ConfigurationError: it is a change to a version that is not here, or as `read_adapter`.
        MotetError: as fetching the anchor and measuring the text raise it.
    """
    fetch_anchor(home)
    if source.adapter is not None:
        return _of_adapter(source, home, name)
    anchor = open_anchor(home)
    if source.packed is not None:
        return _of_packed(source.packed, home, anchor, name)
    assert source.file is not None  # noqa: S101 - find_source sees to it
    with opened(source.file) as found:
        return _of_file(found.path, anchor, name)


def _of_adapter(source: Source, home: OwnerHome, name: str) -> LowRankExpert:
    assert source.adapter is not None  # noqa: S101
    limit = home.charter.experts.max_rank
    anchor = open_anchor(home)
    adapter = read_adapter(source.adapter, anchor, max_rank=limit, base_confirmed=source.base_confirmed)
    folded = {stored: each.folded() for stored, each in adapter.factors.items()}  # as a contribution would hold it
    return LowRankExpert(name=name, contribution=adapter.digest, factors=folded, rows=prepare(home).rows)


def _of_packed(packed: Packed, home: OwnerHome, anchor: Anchor, name: str) -> AnyExpert:
    if packed.contribution.base is None:
        return _of_file(packed.update, anchor, name, contribution=packed.digest)
    for version in Versions.of(home, anchor).all():
        if version.contribution == packed.digest:
            return read_stored(version.base.file, anchor, name=name, contribution=packed.digest)
    raise ConfigurationError(
        f"saw {packed.digest} as a change to {packed.contribution.base}, which is no longer in {home.work}; train and "
        "pack again with `motet train`"
    )


def _of_file(path: Path, anchor: Anchor, name: str, *, contribution: str | None = None) -> AnyExpert:
    digest = contribution or file_digest(path)
    with open_regular(path) as file:
        if file.read(len(MAGIC)) != MAGIC:
            return read_stored(path, anchor, name=name, contribution=digest)
    with UpdateReader(path) as update:
        rank = rank_of(update.specs)
    read = read_update if rank is None else read_lowrank_update
    return read(path, anchor, name=name, contribution=digest)
