"""The report from a home: complete or not, of composites that are there, were never there, or have lost a member."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from motet.coordinator import commands
from motet.coordinator.federation import Federation
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.reporting import report_of
from motet.coordinator.run_record import RunRecord
from motet.protocols.canonical import canonical_json, hex_of
from motet.protocols.contribution import EvaluationReport, Score
from motet.protocols.errors import AssemblyError, DocumentError, MotetError
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
def both(federation: Federation, admit_quickly: Admit, medicine: object, law: object) -> str:
    """A composite of two."""
    admit_quickly(medicine, seed=1)
    admit_quickly(law, seed=2)
    return federation.assemble().digest


def evaluated(
    federation: Federation, owner: object, composite: str, nats: float = 11.090354888959125, **changes: object
) -> EvaluationReport:
    """A report of 2 bits per byte in every row."""
    members = tuple(member.name for member in federation.composites()[composite].members)
    score = Score(nats=nats, bytes=8, documents=2, bits_per_byte_variance=0.25)
    values = {
        "charter": federation.charter.digest,
        "composite": composite,
        "owner": owner.key.public,
        "domain": owner.name,
        "rows": dict.fromkeys(row_names(members), score),
    }
    return EvaluationReport.model_validate(values | changes)


def evaluate(federation: Federation, owner: object, composite: str, **changes: object) -> None:
    """The coordinator gets such a report."""
    federation.keep_evaluation(seal(evaluated(federation, owner, composite, **changes), owner.key))


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
        "gates of 1 layers, wanted 2 as the anchor has": {
            "diagnostics": told(("anchor", "law", "medicine")).model_copy(
                update={"layers": told(("anchor", "law", "medicine")).layers[:1]}
            )
        },
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


def changed(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """The document with one more value, or another, at a path; "every" is each place there."""
    whole = deepcopy(document)
    places = [whole]
    *parents, last = path.split("/")
    for key in parents:
        places = [
            child
            for place in places
            for child in (place.values() if key == "every" else [place[int(key) if isinstance(place, list) else key]])
        ]
    for place in places:
        place[int(last) if isinstance(place, list) else last] = value
    return whole


LAYER = "diagnostics/layers/0"
HOSTILE = {
    "a text that took nothing": ("rows/every/nats", 0.0),
    "a text that took next to nothing": ("rows/every/nats", 5e-324),
    "a row beyond a float": ("rows/anchor/nats", 1.7e308),
    "bytes beyond a float": ("rows/anchor/bytes", 10**400),
    "bytes beyond Python's own limit": ("rows/composite/bytes", int("9" * 4000)),
    "a variance beyond a float": ("rows/every/bits_per_byte_variance", 1.7e308),
    "a row that colours the terminal": ("rows/\x1b[31mred", {"nats": 1.0}),
    "another depth": ("diagnostics/layers", lambda layers: [*layers, layers[0]]),
    "no depth": ("diagnostics/layers", []),
    "no positions": ("diagnostics/positions", {}),
    "a position beyond a float": ("diagnostics/positions/composite/nats", [1.7e308]),
    "tokens beyond a float": ("diagnostics/tokens", 10**400),
    "a bin beyond a float": (f"{LAYER}/histograms/law/tokens/3", 10**400),
    "mass beyond a float": (f"{LAYER}/mass/law", 1.7e308),
    "negative mass": (f"{LAYER}/mass/law", -5.0),
    "more mass than tokens": (f"{LAYER}/mass/law", 1.5),
    "entropy beyond a float": (f"{LAYER}/entropy", 1.7e308),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_no_owner_keeps_the_others_from_their_report(
    federation: Federation, both: str, law: object, medicine: object, tmp_path: Path, what: str
) -> None:
    evaluate(federation, medicine, both, diagnostics=told(("anchor", "law", "medicine")))
    document = evaluated(federation, law, both, diagnostics=told(("anchor", "law", "medicine"))).as_json()
    path, value = HOSTILE[what]
    value = value(document["diagnostics"]["layers"]) if callable(value) else value
    payload = canonical_json(changed(document, path, value))
    signature = law.key.sign("motet.evaluation/1", payload)
    signed = Signed(purpose="motet.evaluation/1", payload=payload.decode(), key=law.key.public, signature=signature)
    with pytest.raises(MotetError):
        federation.keep_evaluation(signed)

    kept = federation.home.evaluations_directory / hex_of(both) / f"{hex_of(law.key.public)}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(signed.canonical())  # as a release that did not check so kept it
    report = report_of(federation, both)
    assert report.domains == ("public", "medicine")
    page = report.evaluation
    assert page is not None
    assert [
        line for line in page.notes if line.startswith("The evaluation of law is left out: ") and line.isprintable()
    ]
    assert all((page.html(), page.markdown(), page.lines(), report.table()))


def test_the_command_says_whose_evaluation_is_left_out(
    federation: Federation, both: str, law: object, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(federation, law, both)
    (kept,) = federation.home.evaluations_directory.glob("*/*.json")
    kept.write_bytes(kept.read_bytes().replace(b"11.09", b"99.09"))
    federation.close()
    commands.report(federation.home.path)
    assert "! The evaluation of law is left out: the signature of ed25519:" in capsys.readouterr().out


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
