"""The composites of a home: assembled from what the ledger says is active, found again, and recorded.

Guarantees that one set of members is assembled once and by one process at a time; that a composite is recorded only
while none of its members is withdrawn or expired, however long the copying took; and that one which was damaged on the
disk since is put aside and made anew: by the same release the same byte for byte, by a later one perhaps under another
digest. A composite that holds what expired later stays.

    composites = CompositeStore(home)
    composite = composites.assemble(without=["medicine"])
    composites.manifests()                      # digest -> manifest

Importing it imports no torch; assembling does.
"""

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from motet.coordinator.home import CoordinatorHome
from motet.coordinator.ledger_store import Draft
from motet.coordinator.store import ExpertStore
from motet.protocols.canonical import digest_of, hex_of, storage_errors, sync_directory
from motet.protocols.composite_manifest import (
    CompositeManifest,
    RoutingPolicy,
    Tuning,
    read_composite_manifest,
    verify_composite,
)
from motet.protocols.contribution import Contribution
from motet.protocols.errors import AssemblyError, ExpertSetError, TensorFileError
from motet.protocols.ledger import LedgerEntry, Standing
from motet.protocols.locks import locked

if TYPE_CHECKING:
    from motet.coordinator.assembly import Composite, Member, TunedRouter

Progress = Callable[[int, int], None]

_log = logging.getLogger(__name__)


class CompositeStore:
    """The folder of composites, each named by the digits of its digest."""

    def __init__(self, home: CoordinatorHome, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` tells seconds since the epoch, by which terms end."""
        self._home, self._clock = home, clock
        self._experts = ExpertStore(home.experts_directory)

    def folder_of(self, composite: str) -> Path:
        """Where the composite of this digest lies, or would lie."""
        return self._home.composites_directory / hex_of(composite)

    def manifests(self) -> dict[str, CompositeManifest]:
        """Digest -> manifest of every composite that is here; a folder without a readable one is passed over."""
        found = {}
        for path in sorted(self._home.composites_directory.glob("[0-9a-f]" * 64)):
            try:
                manifest = read_composite_manifest(path)
            except AssemblyError as error:
                _log.warning("passed over %s: %s", path, error)
            else:
                found[manifest.digest] = manifest
        return found

    def chosen(self, without: Sequence[str] = ()) -> dict[str, Contribution]:
        """Contribution digest -> contribution of all members but those named and expired, in the order of expert ids.

        Raises:
            ExpertSetError: a name in `without` is nobody's.
        """
        standing = self._home.ledger.standing()
        active, gone = standing.active, standing.expired(self._clock()).keys()
        names = {contribution.name for contribution in active.values()}
        if unknown := sorted(set(without) - names):
            raise ExpertSetError(
                f"saw no expert called {unknown[0]}, only {', '.join(sorted(names)) or 'none at all'}; name one of them"
            )
        return {digest: each for digest, each in active.items() if each.name not in without and digest not in gone}

    def expired(self) -> dict[str, Contribution]:
        """Contribution digest -> contribution of the active members whose terms have ended."""
        return self._home.ledger.standing().expired(self._clock())

    def assemble(
        self, without: Sequence[str] = (), *, tuned: "TunedRouter | None" = None, progress: Progress | None = None
    ) -> "Composite":
        """As `motet.coordinator.federation.Federation.assemble`; begins again when a member leaves meanwhile."""
        with storage_errors(self._home.composites_directory):
            self._home.composites_directory.mkdir(exist_ok=True)
        with locked(self._home.path / "composites.lock"), self._experts.admitting():
            while True:
                chosen = self.chosen(without)
                try:
                    return self._assemble(chosen, tuned, progress)
                except (AssemblyError, TensorFileError, FileNotFoundError):
                    if chosen.keys() <= self.chosen(without).keys():
                        raise
                    _log.warning("a member left while the composite was being assembled; beginning again without it")

    def tuned(self, chosen: Mapping[str, Contribution], tag: Tuning) -> "Composite | None":
        """The composite of these members whose router was tuned so, if it is here and whole."""
        return self._existing(self._members(chosen), RoutingPolicy.of(self._home.charter.routing), tag)

    def _assemble(
        self, chosen: dict[str, Contribution], tuned: "TunedRouter | None", progress: Progress | None
    ) -> "Composite":
        members, routing = self._members(chosen), RoutingPolicy.of(self._home.charter.routing)
        tag = None if tuned is None else tuned.tag
        composite = self._existing(members, routing, tag) or self._new(members, routing, tuned, progress)
        try:
            self._home.ledger.append(lambda standing: self._record(composite.manifest, standing))
        except AssemblyError:
            if self._home.ledger.find("composite", composite.digest) is None:
                shutil.rmtree(composite.path, ignore_errors=True)
            raise
        return composite

    def _members(self, chosen: Mapping[str, Contribution]) -> list["Member"]:
        from motet.coordinator.assembly import Member

        return [
            Member(name=each.name, contribution=digest, expert_file=self._experts.file_of(digest), terms=each.terms)
            for digest, each in chosen.items()
        ]

    def _existing(self, members: Sequence["Member"], routing: RoutingPolicy, tag: Tuning | None) -> "Composite | None":
        """The composite of these members, tuned so or not at all, if it is here and whole."""
        from motet.coordinator.assembly import Composite

        names = [(member.name, member.contribution) for member in members]
        wanted = (names, routing, self._home.charter.anchor.digest, tag)
        for digest, manifest in self.manifests().items():
            has = [(member.name, member.contribution) for member in manifest.members]
            if (has, manifest.routing, manifest.anchor, manifest.tuning) == wanted:
                folder = self.folder_of(digest)
                try:
                    return Composite(path=folder, manifest=verify_composite(folder))
                except AssemblyError as error:
                    aside = folder.with_name(f"damaged-{folder.name[:16]}-{secrets.token_hex(4)}")
                    folder.rename(aside)
                    _log.warning("%s; it is assembled anew, and %s can be removed", error, aside)
        return None

    def _new(
        self,
        members: Sequence["Member"],
        routing: RoutingPolicy,
        tuned: "TunedRouter | None",
        progress: Progress | None,
    ) -> "Composite":
        from motet.coordinator.assembly import Composite, assemble

        tag = [] if tuned is None else [tuned.tag.model_dump(mode="json")]
        name = hex_of(digest_of([*(member.contribution for member in members), *tag]))
        building = self._home.composites_directory / f"set-{name}"
        made = assemble(self._home.anchor, members, routing, building, tuned=tuned, progress=progress)
        place = self.folder_of(made.digest)
        with storage_errors(place):
            if place.exists():  # without a readable manifest, or it would have been found
                place.rename(place.with_name(f"damaged-{place.name[:16]}-{secrets.token_hex(4)}"))
            made.path.rename(place)
            sync_directory(place.parent)
        return Composite(path=place, manifest=made.manifest)

    def _record(self, manifest: CompositeManifest, standing: Standing) -> Draft | LedgerEntry:
        """Under the ledger's lock, so that no entry follows a tombstone and still speaks of the one who left."""
        members = {member.name: member.contribution for member in manifest.members}
        if gone := sorted(name for name, contribution in members.items() if contribution in standing.withdrawn):
            raise AssemblyError(f"{gone[0]} was withdrawn while its composite was assembled; assemble again without it")
        expired = standing.expired(self._clock()).keys()
        if ended := sorted(name for name, contribution in members.items() if contribution in expired):
            raise AssemblyError(f"{ended[0]} expired while its composite was assembled; assemble again without it")
        if entry := self._home.ledger.find("composite", manifest.digest):
            return entry
        tuning = {} if manifest.tuning is None else {"tuning": manifest.tuning.model_dump(mode="json")}
        return Draft(kind="composite", subject=manifest.digest, body={"members": members} | tuning)
