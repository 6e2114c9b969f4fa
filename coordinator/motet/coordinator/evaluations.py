"""What was measured of composites: whether an owner's report fits, and what the coordinator scored of public text.

require_fitting(report, manifest, layers=2)        # DocumentError says which row or section does not belong
public = PublicScores(home.evaluations_directory / hex_of(composite))
public.rows(), public.diagnostics()
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from motet.protocols.canonical import canonical_json, write_atomically
from motet.protocols.composite_manifest import CompositeManifest
from motet.protocols.contribution import EvaluationReport, Score
from motet.protocols.documents import first_problem
from motet.protocols.errors import DocumentError
from motet.protocols.evaluation.diagnosis import Diagnostics
from motet.protocols.evaluation.shares import MAX_EXPERTS
from motet.protocols.report import row_names


def require_fitting(report: EvaluationReport, composite: CompositeManifest, *, layers: int) -> None:
    """Raise DocumentError unless rows and sections are those of a report on this composite of so many layers."""
    members = tuple(member.name for member in composite.members)
    sets = any(row.startswith("set:") for row in report.rows)
    rows = row_names(members, sets=sets and len(members) <= MAX_EXPERTS)
    if wrong := sorted(report.rows.keys() ^ set(rows)):
        raise DocumentError(
            f"saw an evaluation with the row {wrong[0]} missing or too many, wanted {', '.join(rows)}; "
            "update motet there and evaluate again"
        )
    if report.diagnostics is None:
        return
    wanted = ("anchor", f"expert:{report.domain}", "composite")
    problem = report.diagnostics.problem({"anchor", *members}, wanted, layers=layers)
    if problem is not None:
        raise DocumentError(f"saw an evaluation with {problem}; update motet there and evaluate again")


def left_out(owner: str, error: DocumentError) -> str:
    """The line that says whose kept evaluation does not count, and why; it may quote what the owner wrote."""
    line = f"The evaluation of {owner} is left out: {error}."
    return "".join(letter if letter.isprintable() else " " for letter in line)[:500]


@dataclass(frozen=True, slots=True)
class PublicScores:
    """What the coordinator measured of one composite on the public text."""

    directory: Path

    def rows(self) -> dict[str, Score] | None:
        """Row -> score, None if it was not scored yet."""
        kept = self.directory / "public.json"
        if not kept.exists():
            return None
        return {row: Score.model_validate(score) for row, score in json.loads(kept.read_bytes()).items()}

    def diagnostics(self) -> Diagnostics | None:
        """What the gate did with it, None if that was not measured."""
        kept = self.directory / "public-diagnostics.json"
        try:
            return Diagnostics.model_validate_json(kept.read_bytes()) if kept.exists() else None
        except ValidationError as error:
            raise DocumentError(f"{kept} is damaged: {first_problem(error)}; remove it and public.json") from error

    def keep(self, rows: dict[str, Score], diagnostics: Diagnostics | None) -> None:
        """Write both down; the rows last, since they say that all is there."""
        if diagnostics is not None:
            write_atomically(
                self.directory / "public-diagnostics.json", canonical_json(diagnostics.model_dump(mode="json"))
            )
        document = {row: score.model_dump(mode="json") for row, score in rows.items()}
        write_atomically(self.directory / "public.json", json.dumps(document, sort_keys=True).encode())
