"""The intake: where signed contributions and withdrawals become entries in the ledger and files in the store.

Guarantees, whatever is killed when: files first, the ledger's entry last, so an entry never speaks of an expert that
is not there; what was done twice is recorded once; strangers leave no trace. Admission is the same for every way of
travel: data plane, Flower reply, or file.

    intake = Intake(home)
    receipt = intake.admit(signed, update, received_bytes)      # signed Receipt: admitted, or refused and why

`motet.protocols.transfer` calls it as its `TransferPolicy`.
"""

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from motet.coordinator.admission import examine_expiry, examine_manifest, examine_update
from motet.coordinator.home import PUBLIC_TEXT_FILE, CoordinatorHome
from motet.coordinator.inspection import inspect
from motet.coordinator.ledger_store import Draft
from motet.coordinator.public_text import PublicText
from motet.coordinator.store import ExpertStore
from motet.protocols.canonical import hex_of, storage_errors
from motet.protocols.composite_manifest import MANIFEST_FILE, read_composite_manifest
from motet.protocols.contribution import Contribution, Withdrawal
from motet.protocols.errors import AdmissionRefused, AssemblyError, DocumentError
from motet.protocols.expert_files import update_specs
from motet.protocols.ledger import LedgerEntry, Standing
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, seal
from motet.protocols.transfer.access import audience_of
from motet.protocols.transfer.publication import BUNDLE_FILE

MAX_REFUSALS = 1000
"""Refusals recorded of one owner; from then on that owner is turned away without a record."""

MAX_ADMISSIONS = 2
"""Updates that one process examines at a time, each in a child with memory and a core of its own; the rest wait."""

_WORKSPACE = "unpacked-"

_log = logging.getLogger(__name__)


class Intake:
    """Decides, stores, records and signs. Its methods may run in several threads and processes at once."""

    def __init__(self, home: CoordinatorHome) -> None:
        self._home = home
        self._store = ExpertStore(home.experts_directory)
        self._places = threading.BoundedSemaphore(MAX_ADMISSIONS)
        self.audience = audience_of(home.charter)
        self.intake_directory = home.intake_directory
        self.guests = home.charter.experts.try_before_joining
        with self._store.alone() as alone:
            if alone:
                self._tidy()

    def enrolled(self, owner: str) -> bool:
        """Whether this public key is an owner's."""
        return owner in self._home.ledger.standing().owners

    def check(self, manifest: Contribution, signed: Signed) -> Signed | None:
        """Judge a manifest before its update travels.

        Returns:
            The receipt, if it was admitted before; None: send the update.

        Raises:
            AdmissionRefused: it breaks a rule; recorded if an owner signed it.
        """
        standing = self._home.ledger.standing()
        try:
            contribution = self._examine(signed, standing)
        except AdmissionRefused as refusal:
            if refusal.reason != "unknown-owner":
                self._refuse(signed, refusal, received_bytes=0)
            raise
        return self._earlier_receipt(contribution.digest)

    def admit(self, signed: Signed, update: Path, received_bytes: int) -> Signed:
        """Decide on a contribution whose update is at `update`; the file is read, not moved.

        Args:
            signed: the manifest, as it came.
            update: its file.
            received_bytes: payload bytes that arrived for it, repeats included.

        Returns:
            A signed receipt: admitted, or refused with reason and message.

        Raises:
            AdmissionRefused: nobody enrolled signed it, so it is not recorded.
            FederationError: it could not be examined, through no fault of its own; nothing was recorded.
            StorageError: the disk is full; nothing was recorded, and the same call may be made again.
        """
        try:
            contribution = self._examine(signed, self._home.ledger.standing())
            earlier = self._earlier_receipt(contribution.digest)
            return earlier or self._admit(signed, contribution, update, received_bytes)
        except AdmissionRefused as refusal:
            if refusal.reason == "unknown-owner":
                raise
            return self._receipt(self._refuse(signed, refusal, received_bytes))

    def withdraw(self, signed: Signed) -> Signed:
        """Record an owner's withdrawal and drop the expert; again, it changes nothing.

        Raises:
            SignatureError: it is not signed by the owner it names.
            AdmissionRefused: that owner has no such contribution here, or it is of another charter.
        """
        withdrawal = signed.open(Withdrawal, by=signed.open(Withdrawal).owner)
        entry = self._home.ledger.append(lambda standing: self._tombstone(signed, withdrawal, standing))
        self._store.remove(withdrawal.contribution)
        return self._receipt(entry)

    def publication(self, digest: str) -> tuple[Path, str] | None:
        """The anchor's bundle, or a composite none of whose members was withdrawn."""
        if digest == self._home.charter.anchor.bundle:
            return self._home.anchor_directory, BUNDLE_FILE
        directory = self._home.composites_directory / hex_of(digest)
        try:
            manifest = read_composite_manifest(directory)
        except AssemblyError:
            return None
        if self._home.ledger.standing().withdrawn & {member.contribution for member in manifest.members}:
            return None
        return directory, MANIFEST_FILE

    def current(self) -> str | None:
        """The newest composite on the ledger that stands; None if there is none."""
        recorded = self._home.ledger.newest_first("composite")
        return next((entry.subject for entry in recorded if self.publication(entry.subject) is not None), None)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A new folder for an update that came by another way than the data plane; gone afterwards."""
        with self._store.admitting(), storage_errors(self.intake_directory):
            self.intake_directory.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.intake_directory, prefix=_WORKSPACE) as directory:
                yield Path(directory)

    def expert_file(self, contribution: str) -> Path:
        """Where an admitted contribution's expert lies."""
        return self._store.file_of(contribution)

    def _examine(self, signed: Signed, standing: Standing) -> Contribution:
        contribution = examine_manifest(signed, standing, self._home.charter, public=self._proxy_ids)
        examine_expiry(contribution, standing, now=time.time())
        return contribution

    @cached_property
    def _proxy_ids(self) -> frozenset[str]:
        """What a contribution may name; the public text is not read where the charter asks for no proxies."""
        if self._home.charter.routing.proxies == 0:
            return frozenset()
        return PublicText(self._home.anchor_directory / PUBLIC_TEXT_FILE).train_ids()

    def _tidy(self) -> None:
        """Remove what a killed process left."""
        if orphans := self._store.clear(self._home.ledger.standing().active):
            _log.info("cleared %d experts that the ledger does not speak of", len(orphans))
        for path in self.intake_directory.glob(f"{_WORKSPACE}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _admit(self, signed: Signed, contribution: Contribution, update: Path, received_bytes: int) -> Signed:
        rank = contribution.rank
        wanted = update_specs(self._home.anchor_manifest, rank)
        with self._places, self._store.admitting():
            findings = inspect(update, self._home, rank=rank)
            intercepts = not self._home.anchor_manifest.normalises_mlp_input
            examine_update(contribution, findings, wanted, self._home.charter, intercepts=intercepts)
            self._store.materialise(contribution, update, self._home)
            entry = self._home.ledger.append(
                lambda standing: self._admission(signed, contribution, standing, received_bytes)
            )
        _log.info("admitted %s of %s, version %d", contribution.digest, contribution.name, contribution.version)
        return self._receipt(entry)

    def _admission(
        self, signed: Signed, contribution: Contribution, standing: Standing, received_bytes: int
    ) -> Draft | LedgerEntry:
        """Under the ledger's lock the manifest is judged once more: much may have happened in the meantime."""
        self._examine(signed, standing)
        if entry := self._home.ledger.find("admitted", contribution.digest):
            return entry
        return Draft(
            kind="admitted",
            subject=contribution.digest,
            body={"signed": signed.as_json(), "received_bytes": received_bytes},
        )

    def _refuse(self, signed: Signed, refusal: AdmissionRefused, received_bytes: int) -> LedgerEntry:
        """Record a refusal of something that an enrolled owner signed; raises it instead of all others."""
        try:
            contribution = signed.open(Contribution, by=signed.open(Contribution).owner)
        except DocumentError:
            raise refusal from None
        body = {
            "signed": signed.as_json(),
            "reason": refusal.reason,
            "message": str(refusal)[:2000],
            "received_bytes": received_bytes,
        }

        def decide(standing: Standing) -> Draft | LedgerEntry:
            entry = self._home.ledger.find("refused", contribution.digest)
            if entry is not None and entry.body["reason"] == refusal.reason:
                return entry
            if contribution.owner not in standing.owners or standing.refusals.get(signed.key, 0) >= MAX_REFUSALS:
                raise refusal
            return Draft(kind="refused", subject=contribution.digest, body=body)

        return self._home.ledger.append(decide)

    def _tombstone(self, signed: Signed, withdrawal: Withdrawal, standing: Standing) -> Draft | LedgerEntry:
        contribution = standing.admitted.get(withdrawal.contribution)
        if withdrawal.charter != self._home.charter.digest:
            raise AdmissionRefused(
                f"saw a withdrawal from charter {withdrawal.charter}, wanted {self._home.charter.digest}; "
                "send it to the coordinator of that charter",
                reason="wrong-charter",
            )
        if contribution is None or contribution.owner != withdrawal.owner:
            raise AdmissionRefused(
                f"{withdrawal.owner} has no contribution {withdrawal.contribution} here; its owner can withdraw it",
                reason="not-yours",
            )
        if entry := self._home.ledger.find("withdrawn", withdrawal.contribution):
            return entry
        return Draft(kind="withdrawn", subject=withdrawal.contribution, body={"signed": signed.as_json()})

    def _earlier_receipt(self, contribution: str) -> Signed | None:
        entry = self._home.ledger.find("admitted", contribution)
        return None if entry is None else self._receipt(entry)

    def _receipt(self, entry: LedgerEntry) -> Signed:
        """The receipt of an entry: always the same, since everything in it is in the ledger."""
        assert entry.kind in ("admitted", "refused", "withdrawn")  # noqa: S101 - what the callers append
        receipt = Receipt(
            charter=self._home.charter.digest,
            contribution=entry.subject,
            owner=Signed.model_validate(entry.body["signed"]).key,
            status=entry.kind,
            reason=entry.body.get("reason"),
            message=entry.body.get("message"),
            received_bytes=entry.body.get("received_bytes", 0),
            entry=entry.digest,
            sequence=entry.sequence,
        )
        return seal(receipt, self._home.key)
