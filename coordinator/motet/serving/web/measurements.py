"""What was measured of a composite, read from a home: the sections of its report's page.

Guarantees: nothing is computed and nothing written; every owner's report is checked again, and one that does not hold
is left out and named; read again only when a file has changed.

    facts, sections = Measurements(home, charter).of(digest, standing)
"""

from collections.abc import Callable
from pathlib import Path

from motet.coordinator.evaluations import PublicScores, left_out, require_fitting
from motet.coordinator.home import read_anchor_manifest
from motet.protocols.canonical import hex_of
from motet.protocols.charter import Charter
from motet.protocols.composite_manifest import CompositeManifest, read_composite_manifest
from motet.protocols.contribution import EvaluationReport
from motet.protocols.errors import DocumentError
from motet.protocols.evaluation.losses import PUBLIC
from motet.protocols.evaluation.sections import Section, sections
from motet.protocols.evaluation.writing import facts
from motet.protocols.ledger import Standing
from motet.protocols.report_page import Column, page_of
from motet.protocols.signing import Signed

Found = tuple[tuple[str, ...], tuple[Section, ...]]
"""Sentences to be read first, and the sections."""


class Measurements:
    """The measurements of one home."""

    def __init__(self, home: Path, charter: Charter) -> None:
        self._home, self._charter = home, charter
        self._seen: object = None
        self._found: Found = ((), ())

    def of(self, composite: str | None, standing: Standing) -> Found:
        """What was measured of the composite of this digest; nothing if nobody has measured it.

        Raises MotetError, OSError or ValueError for what lies there and cannot be read.
        """
        if composite is None:
            return (), ()
        folder = self._home / "evaluations" / hex_of(composite)
        seen = composite, [(path.name, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.json"))]
        if seen != self._seen:
            self._found = self._read(composite, folder, standing)
            self._seen = seen
        return self._found

    def _read(self, composite: str, folder: Path, standing: Standing) -> Found:
        manifest = read_composite_manifest(self._home / "composites" / hex_of(composite))
        notes: list[str] = []
        columns = self._public(folder) | self._owners(folder, manifest, standing, notes.append)
        if not columns:
            return tuple(notes), ()
        members = sorted(member.name for member in manifest.members)
        found = page_of(columns, members, notes=notes)
        return tuple(facts(found)), tuple(sections(found))

    def _public(self, folder: Path) -> dict[str, Column]:
        scores = PublicScores(folder)
        rows = scores.rows()
        return {} if rows is None else {PUBLIC: Column(rows=rows, diagnostics=scores.diagnostics())}

    def _owners(
        self, folder: Path, manifest: CompositeManifest, standing: Standing, unfit: Callable[[str], None]
    ) -> dict[str, Column]:
        anchor = read_anchor_manifest(self._home / "anchor-manifest.json", expect=self._charter.anchor.digest)
        members, found = {member.name for member in manifest.members}, {}
        for owner, request in standing.owners.items():
            path = folder / f"{hex_of(owner)}.json"
            if request.name not in members or not path.exists():
                continue
            try:
                report = Signed.parse(path.read_bytes()).open(EvaluationReport, by=owner)
                require_fitting(report, manifest, layers=anchor.layers)
            except DocumentError as error:
                unfit(left_out(request.name, error))
            else:
                found[request.name] = Column(rows=report.rows, diagnostics=report.diagnostics)
        return dict(sorted(found.items()))
