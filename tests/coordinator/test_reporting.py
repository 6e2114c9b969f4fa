"""The report from a home: complete or not, of composites that are there, were never there, or have lost a member."""

from collections.abc import Callable

import pytest

from motet.coordinator.federation import Federation
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.reporting import report_of
from motet.coordinator.run_record import RunRecord
from motet.protocols.contribution import EvaluationReport, Score
from motet.protocols.errors import AssemblyError
from motet.protocols.report import row_names
from motet.protocols.signing import seal

Admit = Callable[..., str]


@pytest.fixture
def federation(home: CoordinatorHome) -> Federation:
    return Federation(home)


@pytest.fixture
def law(home: CoordinatorHome, make_owner: Callable[[str], object]) -> object:
    owner = make_owner("law")
    home.enrol(owner.request(home))
    return owner


@pytest.fixture
def both(federation: Federation, admit_quickly: Admit, medicine: object, law: object) -> str:
    """A composite of two."""
    admit_quickly(medicine, seed=1)
    admit_quickly(law, seed=2)
    return federation.assemble().digest


def evaluate(federation: Federation, owner: object, composite: str, nats: float = 11.090354888959125) -> None:
    """Report 2 bits per byte in every row."""
    members = tuple(member.name for member in federation.composites()[composite].members)
    score = Score(nats=nats, bytes=8, documents=2, bits_per_byte_variance=0.25)
    report = EvaluationReport(
        charter=federation.charter.digest,
        composite=composite,
        owner=owner.key.public,
        domain=owner.name,
        rows=dict.fromkeys(row_names(members), score),
    )
    federation.keep_evaluation(seal(report, owner.key))


def test_before_the_first_composite(federation: Federation) -> None:
    with pytest.raises(AssemblyError, match="no composite was assembled yet; run"):
        report_of(federation)


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "sha256:", "../..", "medicine"])
def test_a_composite_nobody_made(federation: Federation, both: str, digest: str) -> None:
    with pytest.raises(AssemblyError, match="saw no composite"):
        report_of(federation, digest)


def test_a_column_comes_with_its_owners_evaluation(
    federation: Federation, both: str, medicine: object, law: object
) -> None:
    public = report_of(federation)
    assert public.domains == ("public",)
    assert set(public.bits_per_byte) == set(row_names(("law", "medicine")))
    assert public.shortfalls() == []
    assert [line.split()[0] for line in public.table()[1:]] == row_names(public.composite.members)

    evaluate(federation, law, both)
    partial = report_of(federation, both)
    assert partial.domains == ("public", "law")
    assert partial.bits_per_byte["composite"]["law"] == 2.0
    assert partial.standard_error["composite"]["law"] == 0.5
    assert len(partial.table()) == 1 + 7 + len(partial.shortfalls())

    evaluate(federation, medicine, both)
    assert report_of(federation, both).domains == ("public", "law", "medicine")
    assert report_of(federation, both).composite.stock_path is None


def test_the_wire_is_as_the_owner_counted_else_as_it_arrived(
    federation: Federation, both: str, medicine: object
) -> None:
    digest = next(digest for digest, each in federation.admitted().items() if each.name == "medicine")
    with RunRecord.hold(federation.home.path, "1") as record:
        record.keep_sent(medicine.key.public, digest, 4711)
    wire = report_of(federation, both).wire
    assert wire["medicine"].sent_bytes == 4711
    assert wire["law"].sent_bytes == wire["law"].update_bytes > 0
    assert (wire["law"].method, wire["law"].gain_kept) == ("lossless", 0.98)


def test_a_withdrawal_changes_no_report_of_before(
    federation: Federation, both: str, medicine: object, law: object
) -> None:
    evaluate(federation, law, both)
    before = report_of(federation, both)
    contribution = next(digest for digest, each in federation.admitted().items() if each.name == "law")
    federation.intake.withdraw(law.withdrawal(federation.home, contribution))
    assert report_of(federation, both) == before
    assert report_of(federation, federation.assemble().digest).composite.members == ("medicine",)


def test_the_anchor_alone_has_a_report(federation: Federation, both: str) -> None:
    alone = report_of(federation, federation.assemble(without=["law", "medicine"]).digest)
    assert set(alone.bits_per_byte) == {"anchor", "composite"}
    assert alone.bits_per_byte["anchor"]["public"] == pytest.approx(
        alone.bits_per_byte["composite"]["public"], abs=1e-5
    )
    assert alone.shortfalls() == []
    assert len(alone.table()) == 3
