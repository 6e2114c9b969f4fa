"""One run of the federation, phase by phase: gather experts, assemble, let the owners evaluate.

    run = Run(federation=federation, post=Post(grid), record=record)
    run.play(gather=Policy(min_owners=3), evaluate=Policy(deadline_seconds=600))

What to do next is decided in `motet.coordinator.gather`; letters go through a `Letters`, which is Flower's Grid in
`motet.coordinator.post`; state lies in `motet.coordinator.run_record`; everything else is asked of a `Federation`. A
run that ends early, for whatever reason, is continued by the next one: contributions and evaluations that are there
already are not asked for again.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from motet.coordinator.gather import (
    Answer,
    Order,
    Peer,
    Policy,
    Verdict,
    after_answer,
    after_failure,
    answer_wait,
    judge,
    next_order,
    standing,
    why_failed,
)
from motet.coordinator.run_record import OwnerProgress, RunPhase, RunRecord, RunState
from motet.protocols.contribution import JoinRequest
from motet.protocols.control import EvaluateRequest, OwnerStatus, TrainRequest
from motet.protocols.errors import AdmissionRefused, DocumentError, FederationError, MotetError
from motet.protocols.evaluation.shares import MAX_EXPERTS
from motet.protocols.jobs import MAX_SEEN, InlineUpdate, Request, StatusQuery, contribution_of, job_id, report_of
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.5


class Federation(Protocol):
    """What a run needs of the coordinator's home; all of it can be called again without harm."""

    @property
    def charter(self) -> str:
        """The charter's digest."""

    def enrolled(self) -> Mapping[str, JoinRequest]:
        """Owner -> join request, of everybody enrolled by now."""

    def admitted(self) -> Mapping[str, str]:
        """Owner -> digest of the contribution that the next composite would hold."""

    def expired(self) -> Mapping[str, str]:
        """Owner -> digest of the contribution that it would hold, had its terms not ended."""

    def admit_inline(self, manifest: bytes, update: bytes) -> Signed:
        """Judge an update that came through Flower; the signed receipt says admitted or refused."""

    def assemble(self) -> str:
        """Assemble what is admitted; the composite's digest."""

    def keep_evaluation(self, report: Signed) -> None:
        """Verify and keep an owner's evaluation report; raises MotetError."""

    def evaluate_public(self, composite: str, *, sets: bool) -> None:
        """Score the public text, with a row for every expert set if `sets`; called from a thread of its own."""


class Letters(Protocol):
    """How a run writes to owners; `motet.coordinator.post.Post` is the one over Flower."""

    def nodes(self, flower_keys: Mapping[str, str]) -> Mapping[str, int]:
        """Owner -> where to write to, of those connected now, known by their Flower keys."""

    def send(self, owner: str, node: int, job: str, order: Order, document: Request | StatusQuery) -> None:
        """Send a document."""

    def heard(self, timeout: float) -> list[Answer]:
        """What came back since the last call, exactly one answer for each document sent."""


@dataclass(kw_only=True, slots=True)
class Run:
    """One run over a federation, phase by phase."""

    federation: Federation
    post: Letters
    record: RunRecord
    shapley: bool = False
    """Whether every expert set is scored, for Shapley values; the usual rows alone if there are too many experts."""
    composite: str | None = None
    members: frozenset[str] = frozenset()
    began: float = field(default_factory=time.monotonic)
    """When the phase began."""
    peers: dict[str, Peer] = field(default_factory=dict)
    nodes: Mapping[str, int] = field(default_factory=dict)

    @property
    def sets(self) -> bool:
        """Whether the composite's expert sets are all scored: asked for, and few enough."""
        return self.shapley and len(self.members) <= MAX_EXPERTS

    def play(self, *, gather: Policy, evaluate: Policy) -> None:
        """Gather, assemble, evaluate; a failure is written down before it is raised.

        Of the evaluation, `min_owners` is passed over: one owner's scores suffice, who failed is not in the report.
        """
        phase: RunPhase = "gather"
        try:
            self._phase("gather", TrainRequest(charter=self.federation.charter), gather)
            phase = "assemble"
            self._tell(phase)
            self.members = frozenset(self.federation.admitted())
            self.composite = self.federation.assemble()
            if self.shapley and not self.sets:
                logger.warning("%d experts: no Shapley values, they take every set of 8 at most", len(self.members))
            phase = "evaluate"
            self._evaluate(self.composite, evaluate)
            self._tell("done")
        except BaseException as error:
            self._tell("failed", f"{phase}: {_reason(error)}"[:4000])
            raise

    def _evaluate(self, composite: str, policy: Policy) -> None:
        """The owners score their own text while the coordinator scores the public one."""
        failures: list[Exception] = []

        def score_public() -> None:
            try:
                self.federation.evaluate_public(composite, sets=self.sets)
            except Exception as error:  # re-raised by the main thread
                failures.append(error)

        public = threading.Thread(target=score_public, daemon=True)
        public.start()
        request = EvaluateRequest(charter=self.federation.charter, composite=composite, sets=self.sets)
        self._phase("evaluate", request, replace(policy, min_owners=1))
        public.join()
        if failures:
            raise failures[0]

    def _phase(self, phase: Literal["gather", "evaluate"], request: Request, policy: Policy) -> None:
        self.began = started = time.monotonic()
        verdict = None
        self.peers = {}
        while verdict is None or not verdict.over:
            for answer in self.post.heard(TICK_SECONDS):
                self._take(answer, request)
            given_up = self._expired() if time.monotonic() - started >= policy.absent_seconds else frozenset()
            self._look_around(job_id(request), given_up)
            self._tell(phase)
            if self.composite is not None and not self.peers:
                raise FederationError(
                    "every member of the composite has withdrawn or expired; start another run for the others"
                )
            verdict = judge(self.peers.values(), elapsed=time.monotonic() - started, policy=policy)
            for peer in self.peers.values():
                self._write_to(peer, request, policy)
        self._require_enough(phase, verdict, policy)

    def _expired(self) -> frozenset[str]:
        """Who cannot settle before they contribute again; nobody once the members are chosen."""
        return frozenset(self.federation.expired()) if self.composite is None else frozenset()

    def _take(self, answer: Answer, request: Request) -> None:
        """Note an answer, and act on what it brought."""
        peer, now = self.peers.get(answer.owner), time.monotonic()
        if peer is None or answer.job != peer.job:
            return  # of the phase before; receipts are delivered again, which does no harm
        if answer.status is None:
            logger.warning("%s did not answer (%d): %s", peer.name, answer.code, answer.reason)
            self.peers[peer.owner] = after_failure(peer, code=answer.code, reason=answer.reason, now=now)
            return
        if peer.receipt_due and answer.order is not Order.REQUEST:
            self._delivered(peer.owner)
        asked = answer.order is Order.REQUEST
        peer = self.peers[peer.owner] = after_answer(peer, answer.status, now=now, requested=asked)
        self._note_sent(answer.status)
        if answer.inline is not None:
            self._admit(peer, answer.inline)
        if isinstance(request, EvaluateRequest):
            self._keep_report(peer, request)

    def _note_sent(self, status: OwnerStatus) -> None:
        """Only of what is admitted: an owner's word must not fill the disk with folders."""
        admitted = self.federation.admitted().get(status.owner)
        for job in status.jobs:
            contribution, sent = contribution_of(job), (job.result or {}).get("sent_bytes")
            if contribution is not None and contribution == admitted and isinstance(sent, int) and sent > 0:
                self.record.keep_sent(status.owner, contribution, sent)

    def _admit(self, peer: Peer, inline: InlineUpdate) -> None:
        """Judge an inline update; one that deserves no receipt is its owner's failure, not the run's."""
        try:
            signed = self.federation.admit_inline(inline.manifest, inline.update)
            receipt = signed.open(Receipt)
            if receipt.owner != peer.owner:
                raise DocumentError(f"it sent the contribution of {receipt.owner}, wanted its own; contribute again")
        except (AdmissionRefused, DocumentError) as error:
            self.peers[peer.owner] = replace(peer, fault=str(error))
            return
        self.record.keep_receipt(peer.owner, receipt.contribution, signed)
        self.record.keep_sent(peer.owner, receipt.contribution, len(inline.manifest) + len(inline.update))
        if receipt.status != "admitted":
            fault = f"refused ({receipt.reason}): {receipt.message}"
            self.peers[peer.owner] = replace(peer, fault=fault)
        elif peer.owner not in self.federation.admitted():
            fault = "it was admitted, but its terms have ended; its owner changes [terms] in owner.toml and packs again"
            self.peers[peer.owner] = replace(peer, fault=fault)
        logger.info("%s sent %d bytes inline: %s", peer.name, len(inline.update), receipt.status)

    def _keep_report(self, peer: Peer, request: EvaluateRequest) -> None:
        contribution = self.federation.admitted().get(peer.owner)
        if peer.state is None or peer.state.state != "done" or contribution is None:
            return
        report = report_of(peer.state)
        try:
            if report is None or report.key != peer.owner:
                raise FederationError("the evaluation is done, yet it came without the owner's signed report")
            self.federation.keep_evaluation(report)
        except MotetError as error:
            self.peers[peer.owner] = replace(peer, fault=str(error))
        else:
            self.record.keep_report(peer.owner, contribution, request.composite, report, sets=request.sets)

    def _look_around(self, job: str, expired: frozenset[str]) -> None:
        """Who is enrolled, who is connected, and who has settled: all of it may change at any time.

        Args:
            job: the id of the phase's job.
            expired: owners who fail while they are not connected.
        """
        enrolled, admitted = self.federation.enrolled(), self.federation.admitted()
        if self.composite is not None:
            enrolled = {owner: join for owner, join in enrolled.items() if owner in self.members and owner in admitted}
        self.nodes = self.post.nodes({owner: join.flower_key for owner, join in enrolled.items()})
        self.peers = {
            owner: replace(
                self.peers.get(owner, Peer(owner=owner, name=join.name, job=job)),
                connected=owner in self.nodes,
                settled=self._settled(owner, admitted.get(owner)),
                ended=owner in expired and owner not in admitted and owner not in self.nodes,
                receipt_due=bool(self.record.receipts_due(owner)),
            )
            for owner, join in enrolled.items()
        }

    def _settled(self, owner: str, contribution: str | None) -> bool:
        if contribution is None or self.composite is None:
            return contribution is not None
        return self.record.has_report(owner, contribution, self.composite, sets=self.sets)

    def _write_to(self, peer: Peer, request: Request, policy: Policy) -> None:
        order = next_order(peer, now=time.monotonic(), policy=policy)
        if order is None:
            return
        try:
            if order is Order.REQUEST:
                self._send(peer, order, request)
            else:
                self._send(peer, order, self._query(peer, order))
        except Exception as error:  # the node may have left a moment ago
            logger.warning("cannot write to %s: %s", peer.name, error)
            self.peers[peer.owner] = after_failure(peer, code=0, reason=str(error), now=time.monotonic())
        else:
            self.peers[peer.owner] = replace(peer, busy=True)

    def _send(self, peer: Peer, order: Order, document: Request | StatusQuery) -> None:
        self.post.send(peer.owner, self.nodes[peer.owner], peer.job, order, document)

    def _query(self, peer: Peer, order: Order) -> StatusQuery:
        receipts = tuple(self.record.receipts_due(peer.owner).values())[:8]
        offered = contribution_of(peer.state) if order is Order.INLINE and peer.state is not None else None
        return StatusQuery(
            charter=self.federation.charter,
            seen={job.id: job.state for job in peer.status.jobs[-MAX_SEEN:]} if peer.status is not None else {},
            wait_seconds=0 if receipts or offered else answer_wait(time.monotonic() - self.began),
            inline=offered,
            receipts=receipts,
        )

    def _delivered(self, owner: str) -> None:
        for contribution in list(self.record.receipts_due(owner))[:8]:
            self.record.receipt_delivered(owner, contribution)

    def _require_enough(self, phase: str, verdict: Verdict, policy: Policy) -> None:
        for owner, reason in verdict.failed.items():
            logger.warning("%s: %s failed: %s", phase, self.peers[owner].name, reason)
        wanted = max(1, policy.min_owners)
        if len(verdict.settled) < wanted:
            reasons = "; ".join(f"{self.peers[owner].name}: {reason}" for owner, reason in verdict.failed.items())
            raise FederationError(
                f"saw {len(verdict.settled)} owners through, wanted {wanted} ({reasons}); "
                "when they have mended it, start another run: it continues"
            )

    def _tell(self, phase: RunPhase, message: str = "") -> None:
        owners = {peer.owner: _progress(peer) for peer in self.peers.values()}
        self.record.publish(
            RunState(
                run=self.record.run,
                phase=phase,
                updated=time.time(),
                owners=owners,
                composite=self.composite,
                message=message,
            )
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, MotetError):
        return str(error)
    stopped = isinstance(error, SystemExit | KeyboardInterrupt)
    return "stopped; another run continues" if stopped else f"{type(error).__name__}: {error}"


def _progress(peer: Peer) -> OwnerProgress:
    job = peer.state
    return OwnerProgress(
        name=peer.name,
        connected=peer.connected,
        standing=standing(peer).value,
        job=job.state if job is not None else None,
        progress=job.progress if job is not None else 0.0,
        detail=(why_failed(peer) or (job.detail if job is not None else ""))[:4000],
    )
