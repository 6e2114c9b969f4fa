"""The report from a home: complete or not, of composites that are there, were never there, or have lost a member."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from motet.coordinator import commands
from motet.coordinator.federation import Federation
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.reporting import report_of
from motet.coordinator.run_record import RunRecord
from motet.protocols.contribution import EvaluationReport, Score
from motet.protocols.errors import AssemblyError, DocumentError
from motet.protocols.evaluation.diagnosis import Diagnostics, LayerSums
from motet.protocols.evaluation.positions import Positions
from motet.protocols.evaluation.reliability import Histogram
from motet.protocols.report import Report, row_names
from motet.protocols.signing import Signed, seal

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


def evaluate(
    federation: Federation, owner: object, composite: str, nats: float = 11.090354888959125, **changes: object
) -> None:
    """Report 2 bits per byte in every row."""
    members = tuple(member.name for member in federation.composites()[composite].members)
    score = Score(nats=nats, bytes=8, documents=2, bits_per_byte_variance=0.25)
    values = {
        "charter": federation.charter.digest,
        "composite": composite,
        "owner": owner.key.public,
        "domain": owner.name,
        "rows": dict.fromkeys(row_names(members), score),
    }
    federation.keep_evaluation(seal(EvaluationReport.model_validate(values | changes), owner.key))


def told(experts: tuple[str, ...], row: str = "composite") -> Diagnostics:
    """One token, which every gate shares out evenly."""
    share = 1 / len(experts)
    counts = tuple(int(place == int(share * 10)) for place in range(10))
    even = Histogram(tokens=counts, mass=tuple(count * share for count in counts))
    layer = LayerSums(mass=dict.fromkeys(experts, share), entropy=1.0, histograms=dict.fromkeys(experts, even))
    return Diagnostics(tokens=1, layers=(layer, layer), positions={row: Positions(nats=(2.0,), tokens=(1,))})


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


def test_a_report_from_before_diagnostics_is_signed_and_read_as_it_was(
    federation: Federation, both: str, law: object
) -> None:
    evaluate(federation, law, both)
    (kept,) = federation.home.evaluations_directory.glob("*/*.json")
    payload = Signed.parse(kept.read_bytes()).payload
    assert set(json.loads(payload)) == {"schema", "charter", "composite", "owner", "domain", "rows"}
    page = report_of(federation, both).evaluation
    assert page is not None
    assert set(page.routing) == {"public"}


def test_what_owners_tell_of_their_gates_is_in_the_page(federation: Federation, both: str, law: object) -> None:
    evaluate(federation, law, both, diagnostics=told(("anchor", "law", "medicine")))
    report = report_of(federation, both)
    page = report.evaluation
    assert page is not None
    assert page.routing["law"][0] == pytest.approx({"anchor": 1 / 3, "law": 1 / 3, "medicine": 1 / 3})
    assert set(page.routing) == set(page.positions) == {"public", "law"}
    assert set(page.calibration) == {"law"}
    assert page.systems["composite"]["law"] == pytest.approx(2.0)
    assert page.intervals["composite"]["law"] == pytest.approx((2 - 0.98, 2 + 0.98), abs=1e-3)
    assert Report.parse(report.canonical()) == report


def test_shapley_values_need_every_set_of_everybody(
    federation: Federation,
    admit_quickly: Admit,
    both: str,
    law: object,
    medicine: object,
    make_owner: Callable[[str], object],
) -> None:
    news = make_owner("news")
    federation.home.enrol(news.request(federation.home))
    admit_quickly(news, seed=3)
    three, members = federation.assemble().digest, ("law", "medicine", "news")
    score = Score(nats=8.0, bytes=8, documents=2, bits_per_byte_variance=0.25)
    evaluate(federation, news, three, rows=dict.fromkeys(row_names(members, sets=True), score))
    for values, rows in ((0, row_names(members)), (3, row_names(members, sets=True))):
        if values:
            federation.score_public(three, sets=True)
        page = report_of(federation, three).evaluation
        assert page is not None
        assert len(page.shapley) == values
        assert set(federation.score_public(three)) == set(rows)
    assert set(page.shapley["law"]) == {"public", "news", "average"}


def test_sections_that_do_not_fit_the_composite_are_refused(federation: Federation, both: str, law: object) -> None:
    wrong = {
        "gate mass for anchor, law": {"diagnostics": told(("anchor", "law"))},
        "loss by position of expert:medicine": {"diagnostics": told(("anchor", "law", "medicine"), "expert:medicine")},
        "the row set:law missing or too many": {
            "rows": dict.fromkeys(
                [*row_names(("law", "medicine")), "set:law"],
                Score(nats=1.0, bytes=8, documents=2, bits_per_byte_variance=0.25),
            )
        },
    }
    for message, changes in wrong.items():
        with pytest.raises(DocumentError, match=message):
            evaluate(federation, law, both, **changes)


def test_the_command_prints_and_writes_the_page(
    federation: Federation, both: str, law: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(federation, law, both)
    directory = federation.home.path
    federation.close()
    html, markdown = tmp_path / "page.html", tmp_path / "page.md"
    commands.report(directory, html=html, markdown=markdown)
    printed = capsys.readouterr().out
    assert "Change in bits per byte when an expert is left out" in printed
    assert "Mean gate mass by text and expert, layer 1" in printed
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "## Opting out" in markdown.read_text(encoding="utf-8")
    commands.report(directory, as_json=True)
    value = json.loads(capsys.readouterr().out)
    assert value["evaluation"]["gap_closed"]["composite"]["law"] is None
    assert Report.model_validate(value).experts == ("law",)


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
