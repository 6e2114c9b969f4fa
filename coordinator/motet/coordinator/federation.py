"""The federation as the coordinator's programs see it: who is in, what is admitted, composites and their scores.

    with Federation.open(Path("home")) as federation:
        receipt = federation.admit_inline(signed_bytes, update_bytes)
        composite = federation.assemble(without=["medicine"])
        federation.keep_evaluation(signed_report)
        federation.score_public(composite.digest)

Everything lies on disk under owner keys and digests, so that whoever opens the home next goes on from there. The
calls that compute import torch when they are made.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from motet.coordinator.composite_store import CompositeStore
from motet.coordinator.evaluations import PublicScores, left_out, require_fitting
from motet.coordinator.home import PUBLIC_TEXT_FILE, CoordinatorHome
from motet.coordinator.intake import Intake
from motet.coordinator.public_text import PublicText
from motet.protocols.canonical import hex_of, write_atomically
from motet.protocols.composite_manifest import CompositeManifest, Tuning
from motet.protocols.container import UPDATE_NAME, read_container, read_manifest
from motet.protocols.contribution import Contribution, EvaluationReport, JoinRequest, Score, Withdrawal
from motet.protocols.documents import MAX_DOCUMENT_BYTES
from motet.protocols.errors import AdmissionRefused, DocumentError
from motet.protocols.evaluation.diagnosis import Diagnostics
from motet.protocols.ledger import Standing
from motet.protocols.receipts import Receipt
from motet.protocols.report import row_names
from motet.protocols.signing import Signed, purpose_of

if TYPE_CHECKING:
    from motet.coordinator.assembly import Composite, TunedRouter

SEQUENCE_LENGTH = 256
"""Tokens per window when public text is scored, unless the anchor has fewer positions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Filed:
    """What became of a file: the owner enrolled, the contribution admitted or refused, or the withdrawal recorded."""

    status: Literal["enrolled", "admitted", "refused", "withdrawn"]
    subject: str
    """The owner's key, or the contribution's digest."""
    receipt: Signed | None
    """To be handed back to the owner; None for a join request."""
    message: str | None = None
    """Why it was refused, and what the owner does next; None if it was not."""


class Federation:
    """An open federation; a context manager."""

    def __init__(self, home: CoordinatorHome, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` tells seconds since the epoch, by which the terms of experts end."""
        self.home = home
        self.charter = home.charter
        self.intake = Intake(home)
        self._composites = CompositeStore(home, clock=clock)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the home at `path`; raises as `CoordinatorHome` does, and LedgerError."""
        return cls(CoordinatorHome(path))

    def enrolled(self) -> dict[str, JoinRequest]:
        """Owner's public key -> join request."""
        return dict(self._standing.owners)

    def flower_keys(self) -> dict[str, str]:
        """Owner's name -> the public key (OpenSSH line) of its SuperNode."""
        return {request.name: request.flower_key for request in self._standing.owners.values()}

    def admitted(self) -> dict[str, Contribution]:
        """Contribution digest -> contribution of what the next composite holds, sorted by digest."""
        return self._composites.chosen()

    def expired(self) -> dict[str, Contribution]:
        """Contribution digest -> contribution of what it does not hold because its terms have ended."""
        return self._composites.expired()

    def admit_inline(self, signed: bytes, update: bytes) -> Signed:
        """Admit an update that rode in a Flower reply, by the rules of every other.

        Returns:
            A signed receipt, admitted or refused.

        Raises:
            DocumentError: the manifest is malformed.
            AdmissionRefused: it is larger than the charter's inline limit, or no enrolled owner signed it.
        """
        envelope = Signed.parse(signed)
        limit = self.charter.experts.inline_bytes
        if len(update) > limit:
            raise AdmissionRefused(
                f"saw {len(update)} bytes in a Flower reply, wanted at most {limit}; send it over the data plane",
                reason="too-large",
            )
        with self.intake.workspace() as directory:
            path = directory / UPDATE_NAME
            path.write_bytes(update)
            return self.intake.admit(envelope, path, len(update))

    def admit_file(self, path: Path) -> Filed:
        """Take in a file from a site without a connection: join request, withdrawal, or contribution.

        Raises:
            DocumentError: it is none of these.
            AdmissionRefused: it breaks a rule before there is anything to record.
        """
        if not _looks_like_json(path):
            return self._admit_container(path)
        signed = _read_signed(path)
        if signed.purpose == purpose_of(JoinRequest):
            return Filed(status="enrolled", subject=self.home.enrol(signed).subject, receipt=None)
        if signed.purpose == purpose_of(Withdrawal):
            return self._filed(self.intake.withdraw(signed))
        raise DocumentError(
            f"{path} holds a signed {signed.purpose}, wanted a join request, a withdrawal, or a contribution as "
            "`motet contribute --to` writes it"
        )

    def assemble(
        self,
        without: Sequence[str] = (),
        *,
        tuned: "TunedRouter | None" = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> "Composite":
        """The composite of all active members but those named and expired; the same give the same folder again.

        Args:
            without: owners' names.
            tuned: a router tuned with these members, in place of their own rows.
            progress: called with the bytes copied so far and in total.

        Raises:
            ExpertSetError: a name in `without` is nobody's.
            AssemblyError, StorageError: as `motet.coordinator.assembly.assemble`.
        """
        return self._composites.assemble(without, tuned=tuned, progress=progress)

    def tuned(self, chosen: Mapping[str, Contribution], tag: Tuning) -> "Composite | None":
        """The composite of these members whose router was tuned so, if it was assembled before and is whole."""
        return self._composites.tuned(chosen, tag)

    def composites(self) -> dict[str, CompositeManifest]:
        """Digest -> manifest of every composite that was assembled and is still there."""
        return self._composites.manifests()

    def chosen(self, without: Sequence[str] = ()) -> dict[str, Contribution]:
        """What `assemble` would put in, in the order of expert ids; raises ExpertSetError as it does."""
        return self._composites.chosen(without)

    def keep_evaluation(self, signed: Signed) -> EvaluationReport:
        """Keep what an owner measured; a newer report of the same owner replaces the older.

        Raises:
            SignatureError: it is not signed by the owner it names.
            DocumentError: it is malformed, not finite, of another charter, of an unknown composite, of somebody else's
                domain, or has other rows or sections than the composite's report.
        """
        report = signed.open(EvaluationReport, by=signed.open(EvaluationReport).owner)
        owner = self._standing.owners.get(report.owner)
        if owner is None:
            raise DocumentError(f"saw an evaluation by {report.owner}, who is not enrolled; join first")
        if (report.charter, report.domain) != (self.charter.digest, owner.name):
            raise DocumentError(
                f"saw an evaluation of {report.domain} under {report.charter}, wanted {owner.name} under "
                f"{self.charter.digest}; evaluate again"
            )
        manifest = self.composites().get(report.composite)
        if manifest is None:
            raise DocumentError(f"saw an evaluation of composite {report.composite}, which was not assembled here")
        require_fitting(report, manifest, layers=self.home.anchor_manifest.layers)
        write_atomically(self._evaluation_file(report.composite, report.owner), signed.canonical())
        return report

    def evaluations(
        self, composite: str, *, on_unfit: Callable[[str], None] = lambda line: None
    ) -> dict[str, EvaluationReport]:
        """Owner's public key -> report on the composite of this digest, every one checked again.

        One that does not hold, such as an earlier release may have kept, is left out: `on_unfit` is told whose and why.
        """
        manifest = self.composites().get(composite)
        if manifest is None:
            return {}
        found = {}
        for owner, request in self._standing.owners.items():
            path = self._evaluation_file(composite, owner)
            if not path.exists():
                continue
            try:
                report = Signed.parse(path.read_bytes()).open(EvaluationReport, by=owner)
                require_fitting(report, manifest, layers=self.home.anchor_manifest.layers)
            except DocumentError as error:
                on_unfit(left_out(request.name, error))
            else:
                found[owner] = report
        return found

    def score_public(
        self, composite: str, *, sets: bool = False, on_row: Callable[[str], None] = lambda row: None
    ) -> dict[str, Score]:
        """Every row of the report on the held-out public text; kept, so that asking again costs nothing.

        Args:
            composite: its digest.
            sets: whether every expert set needs a row, for Shapley values.
            on_row: told each row before it is scored.

        Raises:
            AssemblyError: no such composite is here.
            DataError: `sets`, and there are more than eight experts.
        """
        kept, known = self._public_scores(composite), self.composites().get(composite)
        rows = kept.rows()
        members = tuple(member.name for member in known.members) if known is not None else ()
        if rows is not None and not (sets and set(row_names(members, sets=True)) - set(rows)):
            return rows
        from motet.moe.scoring import examine

        folder = self._composites.folder_of(composite)
        text, length = self.public_held_out(), self.sequence_length
        found = examine(folder, text, sequence_length=length, sets=sets, on_row=on_row)
        kept.keep(found.rows, found.diagnostics)
        return found.rows

    def public_diagnostics(self, composite: str) -> Diagnostics | None:
        """What the composite's gate does with the public text; None if a release that did not look scored it."""
        return self._public_scores(composite).diagnostics()

    @property
    def sequence_length(self) -> int:
        """Tokens per window when public text is scored."""
        return min(SEQUENCE_LENGTH, int(self.home.anchor.config.get("max_position_embeddings", SEQUENCE_LENGTH)))

    def public_held_out(self) -> list[str]:
        """The documents of the public text that nobody trains on."""
        return self.public_text.held_out()

    @property
    def public_text(self) -> PublicText:
        """The public text that the charter pins."""
        return PublicText(self.home.anchor_directory / PUBLIC_TEXT_FILE)

    def close(self) -> None:
        """Let go of the home."""
        self.home.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _standing(self) -> Standing:
        return self.home.ledger.standing()

    def _admit_container(self, path: Path) -> Filed:
        signed = read_manifest(path)
        contribution = signed.open(Contribution)
        try:
            earlier = self.intake.check(contribution, signed)
        except AdmissionRefused:  # not unpacked: its manifest alone gets it the receipt, or nothing for a stranger
            return self._filed(self.intake.admit(signed, path, 0))
        if earlier is not None:
            return self._filed(earlier)
        with self.intake.workspace() as directory:
            signed, update = read_container(path, directory)
            return self._filed(self.intake.admit(signed, update, update.stat().st_size))

    def _filed(self, signed: Signed) -> Filed:
        receipt = signed.open(Receipt, by=self.charter.coordinator)
        return Filed(status=receipt.status, subject=receipt.contribution, receipt=signed, message=receipt.message)

    def _public_scores(self, composite: str) -> PublicScores:
        return PublicScores(self.home.evaluations_directory / hex_of(composite))

    def _evaluation_file(self, composite: str, owner: str) -> Path:
        return self.home.evaluations_directory / hex_of(composite) / f"{hex_of(owner)}.json"


def _looks_like_json(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{"
    except OSError as error:
        raise DocumentError(f"cannot read {path}: {error.strerror}; check the name and its rights") from error


def _read_signed(path: Path) -> Signed:
    with path.open("rb") as file:
        return Signed.parse(file.read(MAX_DOCUMENT_BYTES + 1))
