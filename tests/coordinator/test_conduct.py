"""Whole runs without Flower: real desks and spools, letters that arrive at once, and owners who misbehave."""

from dataclasses import replace
from pathlib import Path

import pytest

from motet.coordinator.conduct import Run
from motet.coordinator.gather import Order, Peer, Policy, Standing, standing
from motet.coordinator.run_record import RunRecord, read_run
from motet.protocols.canonical import digest_of
from motet.protocols.control import JobState, OwnerStatus, TrainRequest
from motet.protocols.errors import FederationError, MotetError
from motet.protocols.jobs import MAX_SEEN, job_id
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, SigningKey

from .town import CHARTER, EVERYBODY, Town


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(folder=tmp_path)


def test_a_run_gathers_assembles_and_evaluates(town: Town) -> None:
    medicine, code = town.settle("medicine"), town.settle("code", transport="flower")
    state = town.play()
    assert (state.phase, state.composite) == ("done", town.books.assemble())
    assert sorted(town.books.reports) == ["code", "medicine"]
    assert town.books.scored == 1
    assert medicine.ran == code.ran == ["train", "evaluate"]
    (receipt,) = code.home.outbox.glob("*/receipt.json")
    assert Signed.parse(receipt.read_bytes()).open(Receipt).status == "admitted"


def test_another_run_continues_and_repeats_nothing(town: Town) -> None:
    medicine = town.settle("medicine")
    town.play()
    assert town.play().phase == "done"
    assert medicine.ran == ["train", "evaluate"]
    assert town.books.reports == ["medicine"]
    code = town.settle("code")
    town.play()
    assert medicine.ran == ["train", "evaluate", "evaluate"], "another member makes another composite"
    assert code.ran == ["train", "evaluate"]


def test_shapley_values_take_one_more_job_and_are_then_there_for_every_run(town: Town) -> None:
    medicine = town.settle("medicine")
    town.play()
    town.play(shapley=True)
    assert medicine.ran == ["train", "evaluate", "evaluate"]
    assert town.books.sets == [False, True]
    town.play(shapley=True)
    town.play()
    assert medicine.ran == ["train", "evaluate", "evaluate"]


def test_too_many_experts_for_shapley_values_are_scored_without(town: Town, tmp_path: Path) -> None:
    with RunRecord.hold(tmp_path, "1") as record:
        run = Run(federation=town.books, post=town, record=record, shapley=True)
        for number, sets in ((8, True), (9, False)):
            run.members = frozenset(map(str, range(number)))
            assert run.sets is sets


def test_an_owner_who_fails_stalls_nobody_and_is_named(town: Town) -> None:
    town.settle("medicine")
    town.settle("code", fails="the loss is not finite")
    assert town.play().phase == "done"
    assert town.books.reports == ["medicine"]


def test_too_few_owners_end_the_run_with_their_reasons(town: Town) -> None:
    town.settle("medicine")
    broken = town.settle("code", fails="the loss is not finite")
    with pytest.raises(FederationError, match=r"saw 1 owners through, wanted 2 .code: the loss is not finite"):
        town.play(gather=Policy(min_owners=2, poll_seconds=0))
    state = read_run(town.folder / "coordinator")
    assert state is not None
    assert (state.phase, state.composite) == ("failed", None)
    broken.fails = ""
    assert town.play(gather=Policy(min_owners=2, poll_seconds=0)).phase == "done"
    assert broken.ran == ["train", "train", "evaluate"]


def test_an_owner_who_cannot_fetch_the_composite_is_left_out_of_the_evaluation(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    town.settle("medicine")
    town.settle("code", transport="flower", unscored="the coordinator's data plane cannot be reached")
    both = Policy(min_owners=2, poll_seconds=0)
    assert town.play(gather=both, evaluate=both).phase == "done"
    assert town.books.reports == ["medicine"]
    assert "evaluate: code failed: the coordinator's data plane cannot be reached" in caplog.text


def test_a_refused_update_is_answered_and_left_out(town: Town) -> None:
    town.settle("medicine")
    code = town.settle("code", transport="flower")
    town.books.refuse.add("code")
    assert town.play().phase == "done"
    assert town.books.reports == ["medicine"]
    assert code.ran == ["train"]
    (receipt,) = code.home.outbox.glob("*/receipt.json")
    assert Signed.parse(receipt.read_bytes()).open(Receipt).message == "saw NaN"


@pytest.mark.parametrize("transport", ["flower", "data-plane"])
def test_an_expert_that_expired_is_not_asked_for_without_end(
    town: Town, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    medicine, law = town.settle("medicine"), town.settle("law", transport=transport)
    town.play()
    town.books.ended.add("law")
    assert town.play().composite == digest_of([town.books.active[medicine.home.key.public]])
    assert law.ran == ["train", "evaluate"]
    assert "gather: law failed: " in caplog.text
    assert ("its terms have ended" if transport == "flower" else "expired") in caplog.text


def test_an_owner_whose_expert_expired_and_who_never_comes_is_not_waited_for(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    medicine, law = town.settle("medicine"), town.settle("law")
    town.play()
    town.books.ended.add("law")
    del town.owners[law.home.key.public]
    state = town.play(gather=replace(EVERYBODY, absent_seconds=0))
    assert state.composite == digest_of([town.books.active[medicine.home.key.public]])
    assert "gather: law failed: its terms have ended; its owner changes [terms]" in caplog.text


def test_an_owner_whose_expert_expired_is_asked_when_it_comes(town: Town) -> None:
    public = town.settle("law").home.key.public
    town.play()
    town.books.ended.add("law")
    absent = frozenset({public})
    with RunRecord.hold(town.folder / "coordinator", "1") as record:
        run = Run(federation=town.books, post=town, record=record)
        law = town.owners.pop(public)
        run._look_around("job", absent)
        assert standing(run.peers[public]) is Standing.FAILED
        town.owners[public] = law
        run._look_around("job", absent)
        assert standing(run.peers[public]) is Standing.OPEN
        del town.owners[public]
        town.books.ended.clear()
        run._look_around("job", absent)
        assert standing(run.peers[public]) is Standing.SETTLED


def test_an_evaluation_ends_at_its_deadline_with_whoever_has_scored(town: Town) -> None:
    town.settle("medicine")
    town.settle("code", unscored="the coordinator's data plane cannot be reached")
    away = town.settle("law")
    town.play()
    town.books.reports.clear()
    del town.owners[away.home.key.public]
    town.settle("finance")  # another composite, which law is a member of
    three = Policy(min_owners=3, deadline_seconds=0.1, poll_seconds=0)
    assert town.play(gather=three, evaluate=three).phase == "done"
    assert sorted(town.books.reports) == ["finance", "medicine"]


def test_an_owner_who_sends_rubbish_inline_stops_nobody(town: Town) -> None:
    medicine = town.settle("medicine")
    town.settle("code", transport="flower", sends=b"no manifest")
    assert town.play().phase == "done"
    assert town.books.reports == ["medicine"]
    (manifest,) = medicine.home.outbox.glob("*/contribution.json")
    town.settle("law", transport="flower", sends=manifest.read_bytes())
    assert town.play().phase == "done"
    assert town.books.active.keys() == {medicine.home.key.public}


def test_an_owner_with_very_many_jobs_is_still_asked(town: Town) -> None:
    owner = town.settle("medicine").home.key.public
    many = tuple(JobState(id=f"train-{number:016x}", kind="train", state="done", updated=0.0) for number in range(999))
    status = OwnerStatus(owner=owner, name="medicine", worker_alive=True, jobs=many)
    peer = Peer(owner=owner, name="medicine", job=job_id(TrainRequest(charter=CHARTER.digest)), status=status)
    with RunRecord.hold(town.folder / "coordinator", "1") as record:
        query = Run(federation=town.books, post=town, record=record)._query(peer, Order.STATUS)
    assert query.seen.keys() == {job.id for job in many[-MAX_SEEN:]}


def test_what_was_sent_is_noted_of_admitted_contributions_only(town: Town) -> None:
    owner = town.settle("medicine").home.key.public
    town.play()
    admitted, made_up = town.books.active[owner], digest_of("made up")
    jobs = tuple(
        JobState(
            id=f"train-{digest[7:23]}",
            kind="train",
            state="done",
            updated=0.0,
            result={"contribution": digest, "sent_bytes": 7},
        )
        for digest in (admitted, made_up)
    )
    status = OwnerStatus(owner=owner, name="medicine", worker_alive=True, jobs=jobs)
    home = town.folder / "coordinator"
    with RunRecord.hold(home, "1") as record:
        Run(federation=town.books, post=town, record=record)._note_sent(status)
    assert RunRecord.sent_bytes(home, owner, admitted) == 7
    assert RunRecord.sent_bytes(home, owner, made_up) is None


def test_a_run_whose_members_all_withdraw_ends(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    town.settle("medicine")
    assemble = town.books.assemble

    def assemble_and_lose_everybody() -> str:
        digest = assemble()
        town.books.active.clear()
        return digest

    monkeypatch.setattr(town.books, "assemble", assemble_and_lose_everybody)
    with pytest.raises(FederationError, match="every member of the composite has withdrawn"):
        town.play()


def test_a_report_signed_by_another_is_not_kept(town: Town) -> None:
    town.settle("medicine")
    town.settle("code", signer=SigningKey.generate())
    assert town.play().phase == "done"
    assert town.books.reports == ["medicine"]


def test_a_lost_letter_is_written_again(town: Town) -> None:
    owner = town.settle("medicine", away=1)
    assert town.play().phase == "done"
    assert owner.ran == ["train", "evaluate"]


def test_an_owner_who_never_comes_is_not_waited_for_beyond_the_deadline(town: Town) -> None:
    town.settle("medicine")
    absent = town.settle("code")
    del town.owners[absent.home.key.public]
    assert town.play(gather=Policy(min_owners=1, deadline_seconds=0.1, poll_seconds=0)).phase == "done"
    assert town.books.reports == ["medicine"]


def test_a_withdrawal_between_two_runs_asks_for_nothing_again(town: Town) -> None:
    town.settle("medicine")
    gone = town.settle("code")
    town.play()
    del town.books.active[gone.home.key.public]
    assert town.play().composite == digest_of(sorted(town.books.active.values()))
    assert gone.ran == ["train", "evaluate"]


def test_public_scores_that_fail_fail_the_run(town: Town) -> None:
    town.settle("medicine")
    town.books.public_error = MotetError("the public text is gone")
    with pytest.raises(MotetError, match="public text is gone"):
        town.play()
    state = read_run(town.folder / "coordinator")
    assert state is not None
    assert (state.phase, state.message) == ("failed", "evaluate: the public text is gone")
