"""Experts whose terms have ended go into no new composite; what was assembled before stays what it is."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from motet.coordinator.ablation import plan as ablation_plan
from motet.coordinator.composite_plan import plan
from motet.coordinator.composites import make
from motet.coordinator.federation import Federation
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.run_federation import RunFederation
from motet.protocols.contribution import EvaluationReport, Score, Terms
from motet.protocols.report import row_names
from motet.protocols.signing import seal

Admit = Callable[..., str]

TERMS = Terms(licence="CC0-1.0", expiry="2027-01-31")
END = 1_801_353_600.0
"""2027-01-31T00:00:00Z."""


@dataclass
class Clock:
    """A clock that a test sets; `then` are times to tell first, one a look."""

    now: float = END - 1
    then: tuple[float, ...] = ()

    def __call__(self) -> float:
        if self.then:
            self.now, *rest = self.then
            self.then = tuple(rest)
        return self.now


@pytest.fixture
def members(admit_quickly: Admit, medicine: object, law: object) -> dict[str, str]:
    """Name -> contribution: medicine for ever, law until `END`."""
    return {"medicine": admit_quickly(medicine, seed=1), "law": admit_quickly(law, seed=2, terms=TERMS)}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def federation(home: CoordinatorHome, members: dict[str, str], clock: Clock) -> Federation:
    return Federation(home, clock=clock)


def names(composite: object) -> list[str]:
    return sorted(member.name for member in composite.members)


def test_an_expired_expert_is_left_out_from_the_moment_that_its_terms_name(
    federation: Federation, clock: Clock, members: dict[str, str]
) -> None:
    assert TERMS.expires_at == END
    before = plan(federation, ())
    assert (before.members, before.expired) == (dict(sorted(members.items(), key=lambda each: each[1])), {})
    never = federation.assemble(without=["law"])
    clock.now = END
    after = plan(federation, ())
    assert after.members == {"medicine": members["medicine"]}
    assert after.expired == {"law": "2027-01-31T00:00:00Z"}
    assert after.needed_bytes < before.needed_bytes
    shutil.rmtree(never.path)
    assert federation.assemble() == never, "byte for byte the composite that never had it"


def test_who_is_left_out_and_why_is_told(federation: Federation, clock: Clock) -> None:
    clock.now = END
    line = "left out   law: its terms ended at 2027-01-31T00:00:00Z"
    planned, made = plan(federation, ()), make(federation, stock=False)
    for told in (planned, made):
        assert line in told.lines()
        assert json.loads(json.dumps(told.as_json()))["expired"] == {"law": "2027-01-31T00:00:00Z"}
    assert made.summary.members == ("medicine",)
    asked = make(federation, ("law",), stock=False)
    assert (asked.expired, asked.summary.digest) == ({}, made.summary.digest)
    assert make(federation, ("medicine",), stock=False).summary.members == ()


def test_the_version_before_an_expired_one_does_not_come_back(
    home: CoordinatorHome, admit_quickly: Admit, medicine: object
) -> None:
    admit_quickly(medicine, seed=1)
    admit_quickly(medicine, seed=2, version=2, terms=TERMS)
    standing = home.ledger.standing()
    assert standing.expired(END - 1) == {}
    assert standing.expired(END) == standing.active != {}
    assert plan(Federation(home, clock=lambda: END), ()).members == {}


def test_an_older_composite_stays_and_can_be_evaluated(
    federation: Federation, clock: Clock, law: object, members: dict[str, str]
) -> None:
    older = federation.assemble()
    clock.now = END
    newer = federation.assemble()
    assert (names(older), names(newer)) == (["law", "medicine"], ["medicine"])
    assert set(federation.composites()) == {older.digest, newer.digest}
    assert "expert:law" in federation.score_public(older.digest)
    score = Score(nats=8.0, bytes=8, documents=2, bits_per_byte_variance=0.0)
    report = EvaluationReport(
        charter=federation.charter.digest,
        composite=older.digest,
        owner=law.key.public,
        domain="law",
        rows=dict.fromkeys(row_names(tuple(member.name for member in older.members)), score),
    )
    federation.keep_evaluation(seal(report, law.key))
    assert federation.evaluations(older.digest) == {law.key.public: report}


def test_who_expires_while_it_is_assembled_is_left_out(federation: Federation, clock: Clock) -> None:
    def progress(done: int, total: int) -> None:
        clock.now = END

    composite = federation.assemble(progress=progress)
    assert names(composite) == ["medicine"]
    recorded = [entry.body["members"] for entry in federation.home.ledger.entries() if entry.kind == "composite"]
    assert [sorted(each) for each in recorded] == [["medicine"]]
    assert set(federation.composites()) == {composite.digest}


def test_an_older_composite_is_not_removed_by_an_expiry_in_between(federation: Federation, clock: Clock) -> None:
    older = federation.assemble()
    clock.then = (END - 1, END)  # chosen just before, to be recorded just after
    assert names(federation.assemble()) == ["medicine"]
    assert older.path.is_dir()
    assert older.digest in federation.composites()


def test_a_run_does_not_count_on_it(federation: Federation, clock: Clock, medicine: object, law: object) -> None:
    run = RunFederation(inner=federation)
    assert run.admitted().keys() == {medicine.key.public, law.key.public}
    assert run.expired() == {}
    clock.now = END
    assert run.admitted().keys() == {medicine.key.public}
    assert run.expired().keys() == {law.key.public}
    assert run.assemble() == federation.assemble(without=["law"]).digest
    assert run.enrolled().keys() == {medicine.key.public, law.key.public}, "it may contribute again"
    assert ablation_plan(federation, {}).experts == ("medicine",)


def test_a_new_version_with_later_terms_is_in_again(
    federation: Federation, clock: Clock, admit_quickly: Admit, law: object
) -> None:
    clock.now = END
    admit_quickly(law, seed=3, version=2, terms=TERMS.model_copy(update={"expiry": "2028-01-31T00:00:00Z"}))
    found = plan(federation, ())
    assert (sorted(found.members), found.expired) == (["law", "medicine"], {})
