"""A federation in one process, without Flower: real desks and spools, letters that arrive at once.

town = Town(folder=tmp_path)
town.settle("medicine"), town.settle("code", transport="flower", fails="the loss is not finite")
town.play().phase, town.books.reports             # a whole run, and whose scores it kept
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from motet.client.desk import Desk
from motet.client.owner import DataConfig, OwnerConfig, OwnerHome
from motet.client.spool import Spool
from motet.coordinator.conduct import Run
from motet.coordinator.gather import Answer, Order, Policy
from motet.coordinator.run_record import RunRecord, RunState, read_run
from motet.protocols.canonical import bytes_digest, digest_of, write_atomically
from motet.protocols.charter import Addresses, AnchorPin, Charter
from motet.protocols.container import UPDATE_NAME
from motet.protocols.contribution import (
    CodecRecord,
    Contribution,
    EvaluationReport,
    JoinRequest,
    Score,
    Terms,
    TrainingRecord,
)
from motet.protocols.control import EvaluateRequest, JobState
from motet.protocols.jobs import InlineUpdate, Request, StatusQuery
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, SigningKey, seal

NOTHING = "sha256:" + "0" * 64
UPDATE = b"update"
COORDINATOR = SigningKey.generate()
CHARTER = Charter(
    name="conduct",
    anchor=AnchorPin(digest=NOTHING, statistics=NOTHING, public_text=NOTHING, bundle=NOTHING),
    addresses=Addresses(data_plane="127.0.0.1:1", flower="127.0.0.1:2"),
    coordinator=COORDINATOR.public,
    certificate_authority="-----BEGIN CERTIFICATE-----",
)
EVERYBODY = Policy(min_owners=1, poll_seconds=0)


@dataclass
class Books:
    """A coordinator's home in memory."""

    owners: dict[str, JoinRequest] = field(default_factory=dict)
    active: dict[str, str] = field(default_factory=dict)
    reports: list[str] = field(default_factory=list)
    refuse: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    """Names of whom admission knows, and the next composite does not."""
    scored: int = 0
    sets: list[bool] = field(default_factory=list)
    public_error: Exception | None = None
    charter: str = CHARTER.digest

    def enrolled(self) -> Mapping[str, JoinRequest]:
        return self.owners

    def admitted(self) -> Mapping[str, str]:
        return {owner: digest for owner, digest in self.active.items() if self.owners[owner].name not in self.ended}

    def expired(self) -> Mapping[str, str]:
        return {owner: digest for owner, digest in self.active.items() if self.owners[owner].name in self.ended}

    def admit_inline(self, manifest: bytes, update: bytes) -> Signed:
        contribution = Signed.parse(manifest).open(Contribution)
        refused = contribution.name in self.refuse
        if not refused and contribution.name not in self.ended:
            self.active[contribution.owner] = contribution.digest
        receipt = Receipt(
            charter=CHARTER.digest,
            contribution=contribution.digest,
            owner=contribution.owner,
            status="refused" if refused else "admitted",
            reason="not-finite" if refused else None,
            message="saw NaN" if refused else None,
            received_bytes=len(update),
            entry=NOTHING,
            sequence=0,
        )
        return seal(receipt, COORDINATOR)

    def assemble(self) -> str:
        return digest_of(sorted(self.admitted().values()))

    def keep_evaluation(self, report: Signed) -> None:
        self.reports.append(report.open(EvaluationReport).domain)

    def evaluate_public(self, composite: str, *, sets: bool) -> None:
        self.scored += 1
        self.sets.append(sets)
        if self.public_error is not None:
            raise self.public_error


@dataclass
class Owner:
    """A desk, a spool, and a worker that runs whenever somebody writes."""

    home: OwnerHome
    books: Books
    transport: str = "data-plane"
    fails: str = ""
    """Why training fails; nothing if it does not."""
    unscored: str = ""
    """Why evaluation fails; nothing if it does not."""
    sends: bytes = b""
    """What an inline answer carries in place of the manifest; nothing for the manifest."""
    signer: SigningKey | None = None
    ran: list[str] = field(default_factory=list)
    away: int = 0
    """So many letters are lost first."""

    def work(self) -> None:
        spool = Spool(self.home.path)
        while (job := spool.claim()) is not None:
            self.ran.append(job.kind)
            if isinstance(job.request, EvaluateRequest) and self.unscored:
                spool.update(job.id, "failed", detail=self.unscored)
            elif isinstance(job.request, EvaluateRequest):
                spool.update(job.id, "done", result={"report": self.report(job.request.composite)})
            elif self.fails:
                spool.update(job.id, "failed", detail=self.fails)
            else:
                self.contribute(spool, job.state)
        spool.close()

    def contribute(self, spool: Spool, job: JobState) -> None:
        manifest = Contribution(
            charter=CHARTER.digest,
            anchor=NOTHING,
            name=self.home.config.name,
            owner=self.home.key.public,
            update=bytes_digest(UPDATE),
            update_bytes=len(UPDATE),
            terms=Terms(licence="CC0-1.0"),
            training=TrainingRecord(steps=1, tokens=1, documents=1, held_out_documents=1, seed=0, public_share=0.25),
            codec=CodecRecord(method="lossless"),
            bits_per_byte={"anchor": 2.0, "expert": 1.0},
        )
        folder = self.home.contribution(manifest.digest)
        write_atomically(folder / "contribution.json", seal(manifest, self.home.key).canonical())
        write_atomically(folder / UPDATE_NAME, UPDATE)
        if self.transport == "data-plane":
            self.books.active[manifest.owner] = manifest.digest
        spool.update(job.id, "done", result={"contribution": manifest.digest, "transport": self.transport})

    def report(self, composite: str) -> object:
        report = EvaluationReport(
            charter=CHARTER.digest,
            composite=composite,
            owner=self.home.key.public,
            domain=self.home.config.name,
            rows={"composite": Score(nats=1.0, bytes=8, documents=1, bits_per_byte_variance=0.0)},
        )
        return seal(report, self.signer or self.home.key).model_dump(mode="json", by_alias=True)


@dataclass
class Town:
    """Letters between a run and desks that are all in this process."""

    folder: Path
    books: Books = field(default_factory=Books)
    owners: dict[str, Owner] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)

    def settle(self, name: str, **habits: object) -> Owner:
        config = OwnerConfig(
            name=name,
            coordinator=COORDINATOR.public,
            data=DataConfig(files=("*.jsonl",)),
            terms=Terms(licence="CC0-1.0"),
        )
        home = OwnerHome.create(self.folder / name, config, seal(CHARTER, COORDINATOR))
        owner = self.owners[home.key.public] = Owner(home=home, books=self.books, **habits)  # type: ignore[arg-type]
        self.books.owners[home.key.public] = home.join_request().open(JoinRequest)
        return owner

    def nodes(self, flower_keys: Mapping[str, str]) -> Mapping[str, int]:
        return {owner: number for number, owner in enumerate(self.owners) if owner in flower_keys}

    def send(self, owner: str, node: int, job: str, order: Order, document: Request | StatusQuery) -> None:
        host = self.owners[owner]
        if host.away:
            host.away -= 1
            self.answers.append(Answer(owner=owner, job=job, order=order, code=5, reason="node unavailable"))
            return
        desk = Desk.open(host.home.path, owner)
        if isinstance(document, StatusQuery):
            status, inline = desk.answer(document.model_copy(update={"wait_seconds": 0.0}))
            if inline is not None and host.sends:
                inline = InlineUpdate(manifest=host.sends, update=inline.update)
        else:
            status, inline = desk.submit(document), None
        host.work()
        self.answers.append(Answer(owner=owner, job=job, order=order, status=status, inline=inline))

    def heard(self, timeout: float) -> list[Answer]:
        answers, self.answers = self.answers, []
        return answers

    def play(self, *, gather: Policy = EVERYBODY, evaluate: Policy = EVERYBODY, shapley: bool = False) -> RunState:
        home = self.folder / "coordinator"
        with RunRecord.hold(home, "1") as record:
            run = Run(federation=self.books, post=self, record=record, shapley=shapley)
            run.play(gather=gather, evaluate=evaluate)
        state = read_run(home)
        assert state is not None
        return state
