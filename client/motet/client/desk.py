"""What the owner's ClientApp may do, without Flower: note a wish, tell how jobs stand, hand over what was offered.

    desk = Desk.open(home, owner="ed25519:…")
    desk.submit(TrainRequest(charter=digest))
    status, inline = desk.answer(StatusQuery(charter=digest))

The desk never sees the owner's signing key. It serves requests under the charter that the owner joined and no other,
and gives away an update only when the worker, with the owner's consent, finished the job with
`{"contribution": digest, "transport": "flower"}`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from motet.client.owner import CONFIG_FILE, OwnerConfig, read_signed
from motet.client.spool import Spool
from motet.protocols.canonical import hex_of, write_atomically
from motet.protocols.charter import Charter
from motet.protocols.container import MANIFEST_NAME, UPDATE_NAME
from motet.protocols.control import JobState, OwnerStatus
from motet.protocols.documents import MAX_DOCUMENT_BYTES
from motet.protocols.errors import FederationError, SignatureError
from motet.protocols.jobs import InlineUpdate, Request, StatusQuery, contribution_of, kind_of, rides_inline
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """The public counter of one owner."""

    home: Path
    owner: str
    """The owner's public key."""
    name: str
    charter: Charter
    spool: Spool

    @classmethod
    def open(cls, home: Path, owner: str) -> Self:
        """Open the desk of a home.

        Raises:
            ConfigurationError: `owner.toml` or the charter is missing or unusable.
            SignatureError: the charter is not signed by the coordinator that the owner joined.
        """
        config = OwnerConfig.from_toml(home / CONFIG_FILE)
        charter = read_signed(home / config.charter, "charter").open(Charter, by=config.coordinator)
        return cls(home=home, owner=owner, name=config.name, charter=charter, spool=Spool(home))

    def submit(self, request: Request) -> OwnerStatus:
        """Queue the job that the coordinator wishes for; the owner's worker decides when it runs.

        Raises:
            FederationError: it is under another charter.
            SpoolError: the spool is damaged.
        """
        self._require_charter(request.charter)
        self.spool.submit(kind_of(request), request)
        return self.status()

    def answer(self, query: StatusQuery) -> tuple[OwnerStatus, InlineUpdate | None]:
        """Keep the receipts, wait for news if asked to, and tell how the jobs stand.

        Raises:
            FederationError: it is under another charter, or asks for an update that is not on offer.
            SignatureError: a receipt is not the coordinator's.
        """
        self._require_charter(query.charter)
        for receipt in query.receipts:
            self._keep_receipt(receipt)
        inline = self._offered(query.inline) if query.inline else None
        if inline is None:
            self.spool.wait_for_change(query.seen, query.wait_seconds)
        return self.status(), inline

    def status(self) -> OwnerStatus:
        """How the jobs stand that changed last."""
        jobs = fitting(self.spool.recent())
        return OwnerStatus(owner=self.owner, name=self.name, worker_alive=self.spool.worker_alive(), jobs=jobs)

    def _require_charter(self, digest: str) -> None:
        if digest != self.charter.digest:
            raise FederationError(
                f"saw a request under the charter {digest}, wanted {self.charter.digest}: "
                "the owner joins again with `motet join` if the rules have changed"
            )

    def _keep_receipt(self, signed: Signed) -> None:
        receipt = signed.open(Receipt, by=self.charter.coordinator)
        if receipt.owner != self.owner:
            raise SignatureError(f"saw a receipt for {receipt.owner}, wanted one for {self.owner}")
        folder = self._outbox(receipt.contribution)
        if folder.is_dir():
            write_atomically(folder / "receipt.json", signed.canonical())

    def _offered(self, contribution: str) -> InlineUpdate:
        offers = (job for job in self.spool.jobs() if job.state == "done" and rides_inline(job))
        if contribution not in map(contribution_of, offers):
            raise FederationError(f"the owner does not offer {contribution} through Flower; use the data plane")
        folder, limit = self._outbox(contribution), self.charter.experts.inline_bytes
        manifest, update = folder / MANIFEST_NAME, folder / UPDATE_NAME
        for path, largest in ((manifest, MAX_DOCUMENT_BYTES), (update, limit)):
            if not path.is_file() or path.stat().st_size > largest:
                raise FederationError(f"{path} is missing or larger than {largest} bytes; use the data plane")
        return InlineUpdate(manifest=manifest.read_bytes(), update=update.read_bytes())

    def _outbox(self, contribution: str) -> Path:
        return self.home / "outbox" / hex_of(contribution)


def fitting(jobs: Sequence[JobState], limit: int = MAX_DOCUMENT_BYTES // 2) -> tuple[JobState, ...]:
    """The jobs, the latest last, without the results of older ones where all together would not fit a message.

    An evaluation's result is its whole report. What was asked for last is never far from the end.
    """
    kept: list[JobState] = []
    left = limit
    for job in reversed(jobs):
        size = len(job.model_dump_json())
        fits = size <= left
        left -= size if fits else 0
        kept.insert(0, job if fits else job.model_copy(update={"result": None}))
    return tuple(kept)
