"""The report of a composite, from what lies in the coordinator's home.

report = report_of(federation)            # of the newest composite
report.table(), report.evaluation.html()
"""

import math

from motet.coordinator.composites import summary_of
from motet.coordinator.federation import Federation
from motet.coordinator.run_record import RunRecord
from motet.protocols.canonical import hex_of
from motet.protocols.composite_manifest import CompositeManifest
from motet.protocols.contribution import EvaluationReport, Score
from motet.protocols.errors import AssemblyError
from motet.protocols.evaluation.losses import PUBLIC
from motet.protocols.report import Report, Wire, row_names
from motet.protocols.report_page import Column, page_of


def report_of(federation: Federation, composite: str | None = None) -> Report:
    """What was measured of a composite: public text by the coordinator, every domain by its owner.

    A member whose owner has not evaluated yet, or whose evaluation does not hold, has rows but no column; the page's
    notes name the latter.

    Args:
        federation: an open one.
        composite: its digest; None takes the newest.

    Raises:
        AssemblyError: there is no such composite.
    """
    digest = composite or _newest(federation)
    manifest = federation.composites().get(digest)
    if manifest is None:
        raise AssemblyError(f"saw no composite {digest}; `motet assemble` makes one, `motet report` shows the newest")
    members = [member.name for member in manifest.members]
    notes: list[str] = []
    reports = {report.domain: report for report in federation.evaluations(digest, on_unfit=notes.append).values()}
    scores = {PUBLIC: federation.score_public(digest)} | _by_owner(members, reports)
    rows = row_names(tuple(members))
    return Report(
        domains=tuple(scores),
        bits_per_byte={row: {column: round(scores[column][row].bits_per_byte, 6) for column in scores} for row in rows},
        standard_error={row: {column: _error(scores[column][row]) for column in scores} for row in rows},
        wire=_wire(federation, manifest),
        seconds={},
        composite=summary_of(federation, manifest),
        evaluation=page_of(
            _columns(federation, digest, scores, reports),
            sorted(members),
            title=f"Composite {hex_of(digest)[:12]}",
            notes=notes,
        ),
    )


def _columns(
    federation: Federation, composite: str, scores: dict[str, dict[str, Score]], reports: dict[str, EvaluationReport]
) -> dict[str, Column]:
    told = {domain: report.diagnostics for domain, report in reports.items()}
    told[PUBLIC] = federation.public_diagnostics(composite)
    return {domain: Column(rows=rows, diagnostics=told[domain]) for domain, rows in scores.items()}


def _newest(federation: Federation) -> str:
    found: str | None = None
    for entry in federation.home.ledger.entries():
        found = entry.subject if entry.kind == "composite" else found
    if found is None:
        raise AssemblyError("no composite was assembled yet; run `motet coordinate` or `motet assemble` first")
    return found


def _by_owner(members: list[str], reports: dict[str, EvaluationReport]) -> dict[str, dict[str, Score]]:
    return {name: reports[name].rows for name in sorted(members) if name in reports}


def _error(score: Score) -> float:
    return round(math.sqrt(score.bits_per_byte_variance), 6)


def _wire(federation: Federation, composite: CompositeManifest) -> dict[str, Wire]:
    """What each member's update took: as its owner counted, else the payload that arrived here."""
    admitted, found = federation.home.ledger.standing().admitted, {}
    for member in composite.members:
        contribution = admitted[member.contribution]
        sent = RunRecord.sent_bytes(federation.home.path, contribution.owner, member.contribution)
        if sent is None:
            entry = federation.home.ledger.find("admitted", member.contribution)
            sent = 0 if entry is None else int(entry.body.get("received_bytes", 0))
        found[member.name] = Wire(
            method=contribution.codec.method,
            update_bytes=contribution.update_bytes,
            sent_bytes=sent,
            gain_kept=contribution.codec.gain_kept,
        )
    return found
