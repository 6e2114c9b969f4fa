"""The control loop's decisions: who is asked what, and when a phase is over."""

from dataclasses import replace

import pytest

from motet.coordinator.gather import (
    LONGEST_PAUSE_SECONDS,
    PATIENCE,
    Order,
    Peer,
    Policy,
    after_answer,
    after_failure,
    answer_wait,
    judge,
    next_order,
    why_failed,
)
from motet.protocols.control import JobState, OwnerStatus, Phase, TrainRequest
from motet.protocols.jobs import MAX_WAIT_SECONDS, job_id

CHARTER = "sha256:" + "1" * 64
JOB = job_id(TrainRequest(charter=CHARTER))
POLICY = Policy(min_owners=2, deadline_seconds=60, poll_seconds=2)
NODE_GONE, APP_RAISED = 5, 2


def key(number: int) -> str:
    return f"ed25519:{number:064x}"


def peer(number: int = 0, **known: object) -> Peer:
    known.setdefault("connected", True)
    return Peer(owner=key(number), name=f"owner-{number}", job=JOB, **known)  # type: ignore[arg-type]


def told(state: Phase, *, result: dict[str, object] | None = None, detail: str = "", updated: float = 0) -> OwnerStatus:
    job = JobState(id=JOB, kind="train", state=state, updated=updated, result=result, detail=detail)
    return OwnerStatus(owner=key(0), name="owner-0", worker_alive=True, jobs=(job,))


def order(known: Peer, now: float = 100.0) -> Order | None:
    return next_order(known, now=now, policy=POLICY)


def test_an_owner_is_asked_as_soon_as_its_node_is_there() -> None:
    assert order(peer(connected=False)) is None
    assert order(peer()) is Order.REQUEST
    assert order(peer(busy=True)) is None
    assert order(peer(settled=True)) is None


def test_an_owner_at_work_is_asked_how_it_goes_but_not_too_often() -> None:
    known = peer(requested=True, status=told("running"), heard=100.0, changed=100.0)
    assert order(known, now=101.9) is None
    assert order(known, now=102.0) is Order.STATUS


def test_an_owner_without_news_is_asked_ever_more_rarely() -> None:
    known = peer(requested=True, status=told("waiting"), heard=300.0, changed=0.0)
    assert order(known, now=329.0) is None
    assert order(known, now=330.0) is Order.STATUS
    for_days = replace(known, heard=1e6)
    assert order(for_days, now=1e6 + LONGEST_PAUSE_SECONDS) is Order.STATUS


def test_an_offered_update_is_fetched_at_once() -> None:
    done = told("done", result={"contribution": CHARTER, "transport": "flower"})
    assert order(peer(requested=True, status=done, heard=100.0)) is Order.INLINE
    assert why_failed(peer(requested=True, status=done)) is None


def test_a_receipt_is_delivered_even_to_an_owner_who_has_settled() -> None:
    assert order(peer(settled=True, receipt_due=True)) is Order.STATUS
    assert order(peer(receipt_due=True)) is Order.REQUEST
    assert order(peer(requested=True, receipt_due=True)) is Order.STATUS
    assert order(peer(fault="refused (wrong-anchor)", receipt_due=True)) is Order.STATUS
    assert order(peer(fault="refused (wrong-anchor)")) is None


def test_an_earlier_runs_failure_is_asked_for_again() -> None:
    assert order(peer(status=told("failed"))) is Order.REQUEST
    assert why_failed(peer(status=told("failed"))) is None


def test_a_failed_job_is_reported_with_its_reason() -> None:
    known = peer(requested=True, status=told("failed", detail="the loss is not finite"))
    assert order(known) is None
    assert why_failed(known) == "the loss is not finite"


def test_a_finished_job_of_which_nothing_was_admitted_does_not_stall_the_run() -> None:
    known = peer(requested=True, status=told("done", result={"contribution": CHARTER, "transport": "grpc"}))
    assert "nothing of it was admitted" in str(why_failed(known))
    assert why_failed(replace(known, settled=True)) is None


def test_failures_make_pauses_that_grow_and_end_with_the_first_answer() -> None:
    known, now, pauses = peer(requested=True, busy=True), 0.0, []
    for _ in range(9):
        known = after_failure(known, code=NODE_GONE, reason="gone", now=now)
        pauses.append(known.quiet_until - now)
        assert order(known, now=known.quiet_until - 0.01) is None
        now = known.quiet_until
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert why_failed(known) is None, "a node that is away may come back for as long as the deadline allows"
    again = after_answer(known, told("running"), now=now, requested=False)
    assert (again.failures, again.busy, again.requested) == (0, False, True)


def test_an_owner_whose_own_software_refuses_is_given_up() -> None:
    known = peer()
    for _ in range(PATIENCE):
        assert why_failed(known) is None
        known = after_failure(known, code=APP_RAISED, reason="another charter", now=0.0)
    assert "another charter" in str(why_failed(known))
    assert order(known, now=1e9) is None


def test_only_the_answer_to_a_request_counts_as_asked() -> None:
    assert not after_answer(peer(), told("failed"), now=1.0, requested=False).requested
    assert after_answer(peer(), told("queued"), now=1.0, requested=True).requested


def test_news_are_a_state_or_a_time_that_differs() -> None:
    known = after_answer(peer(), told("running", updated=1), now=10.0, requested=True)
    assert known.changed == 10.0
    assert after_answer(known, told("running", updated=1), now=20.0, requested=False).changed == 10.0
    assert after_answer(known, told("running", updated=2), now=20.0, requested=False).changed == 20.0


def failed(number: int) -> Peer:
    return peer(number, requested=True, fault="broken")


@pytest.mark.parametrize(
    ("peers", "elapsed", "over"),
    [
        ([], 0.0, False),
        ([], 100.0, False),
        ([peer(0, settled=True), peer(1, settled=True), peer(2, settled=True)], 0.0, True),
        ([peer(0, settled=True), peer(1, settled=True), peer(2)], 59.0, False),
        ([peer(0, settled=True), peer(1, settled=True), peer(2)], 60.0, True),
        ([peer(0, settled=True), peer(1), peer(2)], 1e9, False),
        ([peer(0, settled=True), peer(1, settled=True), failed(2)], 0.0, True),
        ([peer(0, settled=True), failed(1), failed(2)], 0.0, True),
        ([failed(0), failed(1), peer(2, connected=False)], 0.0, False),
        ([peer(0, settled=True), replace(failed(1), receipt_due=True)], 0.0, False),
        ([peer(0, settled=True), replace(failed(1), receipt_due=True, connected=False)], 0.0, True),
        ([peer(0, settled=True, receipt_due=True)], 0.0, True),
    ],
)
def test_a_phase_ends_with_everybody_or_with_enough_at_the_deadline(
    peers: list[Peer], elapsed: float, over: bool
) -> None:
    assert judge(peers, elapsed=elapsed, policy=POLICY).over is over


def test_without_a_deadline_a_phase_waits_for_whoever_may_still_come() -> None:
    patient = Policy(min_owners=1)
    peers = [peer(0, settled=True), peer(1, connected=False)]
    assert not judge(peers, elapsed=1e9, policy=patient).over


def test_the_verdict_names_everybody() -> None:
    verdict = judge([peer(0, settled=True), peer(1), failed(2)], elapsed=0.0, policy=POLICY)
    assert (verdict.settled, verdict.open, verdict.failed) == ((key(0),), (key(1),), {key(2): "broken"})


def test_an_answer_waits_the_longer_the_longer_the_phase_has_gone_on() -> None:
    waits = [answer_wait(elapsed) for elapsed in (0, 10, 24, 40, 86_400)]
    assert waits == [5, 5, 12, MAX_WAIT_SECONDS, MAX_WAIT_SECONDS]
