"""The control loop's decisions, as functions of values: whom to ask what next, and when a phase is over.

    order = next_order(peer, now=time.monotonic(), policy=policy)       # None: leave this owner in peace
    verdict = judge(peers, elapsed=seconds, policy=policy)              # verdict.over, verdict.failed

A phase asks every owner for one job, training or evaluation, and is over when all have settled or failed, or when the
deadline has passed and enough have settled. Nothing here waits: an owner who is slow, away or broken holds up only
what needs that owner.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from motet.protocols.control import JobState, OwnerStatus
from motet.protocols.jobs import MAX_WAIT_SECONDS, InlineUpdate, rides_inline

LONGEST_PAUSE_SECONDS = 60.0
CALM = 10.0
"""An owner without news for so many seconds is asked again after a tenth of them: jobs may wait for days."""
SHORTEST_WAIT_SECONDS = 5.0
PATIENCE = 6
"""Consecutive refusals by an owner's own software before the owner counts as failed."""

NO_ANSWER = 0
"""The code of a failure that Flower has no code for."""

_REFUSALS = (1, 2, 7)  # Flower: the ClientApp did not load, raised, or its FAB was not trusted


class Order(StrEnum):
    """What to send to an owner."""

    REQUEST = "request"
    """The phase's request; it can be repeated without harm."""
    STATUS = "status"
    INLINE = "inline"
    """A status query that asks for the offered update as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back for one letter: a status, or why there is none."""

    owner: str
    job: str
    """The job of the phase that the letter belonged to."""
    order: Order
    status: OwnerStatus | None = None
    inline: InlineUpdate | None = None
    code: int = NO_ANSWER
    reason: str = ""


class Standing(StrEnum):
    """How far an owner is in a phase."""

    OPEN = "open"
    SETTLED = "settled"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What a run wants of its phases."""

    min_owners: int = 1
    """How many must settle for the run to go on."""
    deadline_seconds: float | None = None
    """After so long, `min_owners` suffice; None waits for everyone who has not failed."""
    absent_seconds: float = 15.0
    """How long an owner whose expert has expired is waited for while not connected: one who starts again, as the
    coordinator did, needs a few seconds."""
    poll_seconds: float = 0.5
    """How long an owner is left in peace between two questions. A SuperNode looks for mail at once after an answer and
    then every 3 s, so a pause between 0.5 and 2 s costs nothing and one of 3 s costs another 3 s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """What the coordinator knows of one owner in the current phase; times are of one monotonic clock."""

    owner: str
    name: str
    job: str
    """The id of the job that the phase asks for."""
    connected: bool = False
    busy: bool = False
    """A message is on its way, or its answer is."""
    requested: bool = False
    status: OwnerStatus | None = None
    heard: float = field(default=float("-inf"))
    changed: float = field(default=float("-inf"))
    """When the job's state or progress was last seen to differ."""
    settled: bool = False
    """The contribution is admitted, or the evaluation kept: known from the coordinator's own store."""
    ended: bool = False
    """The contribution has expired, and the owner is not there to send another."""
    receipt_due: bool = False
    fault: str | None = None
    """Why the coordinator gave this owner up in this phase."""
    failures: int = 0
    quiet_until: float = field(default=float("-inf"))

    @property
    def state(self) -> JobState | None:
        """The phase's job as the owner last told."""
        jobs = self.status.jobs if self.status is not None else ()
        return next((job for job in jobs if job.id == self.job), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Where a phase stands."""

    over: bool
    settled: tuple[str, ...]
    open: tuple[str, ...]
    failed: dict[str, str]
    """Owner -> why."""


def next_order(peer: Peer, *, now: float, policy: Policy) -> Order | None:
    """What to send to this owner now, None for nothing."""
    if peer.busy or not peer.connected or now < peer.quiet_until:
        return None
    open_ = standing(peer) is Standing.OPEN
    if open_ and not peer.requested:
        return Order.REQUEST  # before a receipt: the owner works while it is delivered
    if peer.receipt_due:
        return Order.STATUS
    if not open_:
        return None
    if peer.state is not None and peer.state.state == "done" and rides_inline(peer.state):
        return Order.INLINE
    pause = max(policy.poll_seconds, min(LONGEST_PAUSE_SECONDS, (peer.heard - peer.changed) / CALM))
    return Order.STATUS if now - peer.heard >= pause else None


def answer_wait(elapsed: float) -> float:
    """Seconds that an answer may wait for news, `elapsed` seconds into a phase: half as many, within bounds.

    Every answer costs the owner's machine two seconds of CPU: a job of minutes tells of its first steps soon, and one
    of hours every twenty seconds.
    """
    return min(MAX_WAIT_SECONDS, max(SHORTEST_WAIT_SECONDS, elapsed / 2))


def standing(peer: Peer) -> Standing:
    """Whether the owner has settled, has failed, or may still settle."""
    if peer.settled:
        return Standing.SETTLED
    return Standing.FAILED if why_failed(peer) is not None else Standing.OPEN


def why_failed(peer: Peer) -> str | None:
    """Why this owner will not settle in this phase without help, None if it may."""
    if peer.settled:
        return None
    if peer.fault is not None:
        return peer.fault
    if peer.ended:
        return "its terms have ended; its owner changes [terms] in owner.toml, packs again and sends that"
    if not peer.requested or peer.state is None:
        return None
    if peer.state.state == "failed":
        return peer.state.detail or "the job failed without a reason"
    if peer.state.state == "done" and not rides_inline(peer.state):
        return "the job is done, yet nothing of it was admitted: refused, withdrawn, expired, or kept as a file"
    return None


def judge(peers: Iterable[Peer], *, elapsed: float, policy: Policy) -> Verdict:
    """Whether the phase is over, and who is where.

    Args:
        peers: the enrolled owners.
        elapsed: seconds since the phase began.
        policy: the run's wishes.
    """
    by_standing: dict[Standing, list[Peer]] = {each: [] for each in Standing}
    for peer in peers:
        by_standing[standing(peer)].append(peer)
    settled, waiting = by_standing[Standing.SETTLED], by_standing[Standing.OPEN]
    late = policy.deadline_seconds is not None and elapsed >= policy.deadline_seconds
    someone = bool(settled or by_standing[Standing.FAILED])
    owing = any(peer.receipt_due and peer.connected and not peer.failures for peer in by_standing[Standing.FAILED])
    enough = (someone and not waiting) or (late and len(settled) >= max(1, policy.min_owners))
    return Verdict(
        over=enough and not owing,  # a refusal is told before the phase ends; an admission can wait for the next
        settled=tuple(peer.owner for peer in settled),
        open=tuple(peer.owner for peer in waiting),
        failed={peer.owner: why_failed(peer) or "" for peer in by_standing[Standing.FAILED]},
    )


def after_answer(peer: Peer, status: OwnerStatus, *, now: float, requested: bool) -> Peer:
    """The owner answered; `requested` says that the phase's request was what it answered."""
    fresh = replace(peer, status=status)
    news = peer.state is None or fresh.state is None or fresh.state.updated != peer.state.updated
    return replace(
        fresh,
        heard=now,
        changed=now if news else peer.changed,
        busy=False,
        failures=0,
        quiet_until=now,
        requested=peer.requested or requested,
    )


def after_failure(peer: Peer, *, code: int, reason: str, now: float) -> Peer:
    """A message failed: be quiet for 1, 2, 4 … 60 s; an owner whose own software keeps refusing has failed.

    Args:
        code: Flower's error code; 5 and 8 are a node or a ClientApp that died and may come back.
        reason: what Flower or the owner's ClientApp said.
    """
    failures = peer.failures + 1
    given_up = code in _REFUSALS and failures >= PATIENCE
    pause = min(LONGEST_PAUSE_SECONDS, 2.0 ** (failures - 1))
    fault = f"refused {failures} messages in a row: {reason}" if given_up else peer.fault
    return replace(peer, busy=False, failures=failures, quiet_until=now + pause, fault=fault)
