"""The page from sums: the same figures as from documents, and no section that was not measured everywhere."""

import math

import pytest

from motet.protocols.contribution import Score
from motet.protocols.evaluation.diagnosis import Diagnostics, LayerSums
from motet.protocols.evaluation.positions import Positions
from motet.protocols.evaluation.reliability import Histogram
from motet.protocols.report import row_names
from motet.protocols.report_page import Column, page_of, page_of_own

MEMBERS = ("code", "law", "news")
DOMAINS = ("public", *MEMBERS)


def score(bits: float, error: float = 0.1) -> Score:
    """So many bits per byte, with this standard error."""
    return Score(nats=bits * 1000 * math.log(2), bytes=1000, documents=10, bits_per_byte_variance=error**2)


def worth(row: str, domain: str) -> float:
    """Each expert takes one bit off its own domain; the anchor needs 4 everywhere."""
    if row.startswith("expert:"):
        return 4.0 - (row == f"expert:{domain}")
    if row.startswith("set:"):
        return 4.0 - (domain in row.removeprefix("set:").split("+"))
    speaks = row != "anchor" and domain != "public" and row != f"composite-without:{domain}"
    return 4.0 - (0.8 if row == "soup" else 1.0) * speaks


def columns(*, sets: bool = True, told: tuple[str, ...] = DOMAINS) -> dict[str, Column]:
    """What all owners returned."""
    rows = row_names(MEMBERS, sets=sets)
    return {
        domain: Column(
            rows={row: score(worth(row, domain)) for row in rows}, diagnostics=gate(domain) if domain in told else None
        )
        for domain in DOMAINS
    }


def gate(domain: str) -> Diagnostics:
    """Two layers: the first trusts nobody more than others, the second only the right one, 0.95 sure."""
    names = ("anchor", *MEMBERS)
    owner = "anchor" if domain == "public" else domain
    sure = {name: 0.95 if name == owner else 0.05 / 3 for name in names}
    return Diagnostics(
        tokens=10,
        layers=(sums(dict.fromkeys(names, 0.25)), sums(sure)),
        positions={"composite": Positions(nats=(14.0, 7.0), tokens=(5, 5))},
    )


def sums(weights: dict[str, float]) -> LayerSums:
    """Ten tokens with the same weights."""

    def histogram(weight: float) -> Histogram:
        counts = [10 * (int(weight * 10) == place) for place in range(10)]
        return Histogram(tokens=tuple(counts), mass=tuple(count * weight for count in counts))

    entropy = sum(-10 * weight * math.log(weight) for weight in weights.values())
    mass = {name: 10 * weight for name, weight in weights.items()}
    return LayerSums(mass=mass, entropy=entropy, histograms={name: histogram(w) for name, w in weights.items()})


def test_the_matrix_has_intervals_of_the_owners_variance() -> None:
    page = page_of(columns(), MEMBERS)
    assert page.systems["composite"] == pytest.approx({"public": 4, "code": 3, "law": 3, "news": 3, "average": 3.25})
    low, high = page.intervals["composite"]["law"]
    assert (low, high) == pytest.approx((3 - 0.196, 3 + 0.196), abs=1e-4)
    low, high = page.intervals["composite"]["average"]
    assert high - low == pytest.approx(2 * 0.196 / 2, abs=1e-4)  # four domains of the same variance
    assert "set:law" not in page.systems


def test_the_gap_is_that_to_the_domains_own_expert() -> None:
    page = page_of(columns(), MEMBERS)
    assert page.gap_closed["soup"] == pytest.approx({"code": 0.8, "law": 0.8, "news": 0.8})
    assert page.gap_closed["composite-without:law"]["law"] == pytest.approx(0)


def test_opting_out_comes_from_the_rows_without() -> None:
    page = page_of(columns(), MEMBERS)
    assert page.opt_out["law"].change == pytest.approx(
        {"public": 0, "code": 0, "law": 1 / 3, "news": 0, "average": 0.25 / 3.25}
    )
    assert page.opt_out["law"].own_over_anchor == pytest.approx(0)


def test_shares_are_per_domain_and_need_every_set_everywhere() -> None:
    page = page_of(columns(), MEMBERS)
    for shares in (page.shapley, page.leave_one_out):
        assert shares["law"] == pytest.approx({"public": 0, "code": 0, "law": 1, "news": 0, "average": 0.25})
    without = page_of(columns(sets=False), MEMBERS)
    assert without.shapley == {}
    assert without.leave_one_out == page.leave_one_out
    mixed = columns() | {"law": columns(sets=False)["law"]}
    assert page_of(mixed, MEMBERS).shapley == {}


def test_routing_entropy_and_positions_are_means() -> None:
    page = page_of(columns(), MEMBERS)
    assert page.routing["law"][0]["news"] == pytest.approx(0.25)
    assert page.routing["law"][1]["law"] == pytest.approx(0.95)
    assert page.entropy["law"][0] == pytest.approx(math.log(4))
    assert page.positions["law"]["composite"][0].bits_per_token == pytest.approx(14 / 5 / math.log(2))


def test_calibration_pools_the_histograms_of_all_domains() -> None:
    page = page_of(columns(), MEMBERS)
    assert page.calibration_error["law"] == pytest.approx((0.0, (0.05 + 3 * 0.05 / 3) / 4))
    rows = {round(row.predicted, 2): row for row in page.calibration["law"].rows}
    assert rows[0.25].right == pytest.approx(0.25)
    assert (rows[0.95].right, rows[0.95].tokens) == (1.0, 10)


def test_what_was_not_told_is_left_out() -> None:
    page = page_of(columns(told=("public", "law")), MEMBERS)
    assert set(page.routing) == set(page.positions) == {"public", "law"}
    assert set(page.calibration) == {"law"}
    silent = page_of(columns(told=()), MEMBERS)
    assert silent.routing == silent.entropy == silent.calibration == silent.positions == {}
    assert page_of({"public": columns()["public"]}, MEMBERS).gap_closed == {}


def test_the_anchor_alone_has_a_page() -> None:
    rows = {row: score(4.0) for row in row_names(())}
    page = page_of({"public": Column(rows=rows)}, ())
    assert (page.opt_out, page.shapley, page.leave_one_out) == ({}, {}, {})
    assert "Bits per byte" in page.html()


def test_an_owners_own_page_is_routing_and_positions() -> None:
    page = page_of_own("law", gate("law"))
    text = "\n".join(page.lines())
    assert "Mean gate mass by text and expert, layer 1" in text
    assert "Bits per token by system and tokens before, law" in text
    assert page.systems == {}


def test_what_a_domain_tells_of_other_gates_is_left_out_and_said() -> None:
    odd = gate("law")
    for layers in ((), odd.layers[:1], (*odd.layers, odd.layers[0])):
        given = columns()
        given["law"] = Column(rows=given["law"].rows, diagnostics=odd.model_copy(update={"layers": layers}))
        page = page_of(given, MEMBERS)
        assert set(page.routing) == set(page.positions) == set(DOMAINS) - {"law"}
        assert page.notes[-1].startswith(
            f"What law told of its gates and positions is left out: saw gates of {len(layers)}"
        )
        assert all((page.html(), page.markdown(), page.lines()))
    assert len(page_of(columns(), MEMBERS).notes) == 1


def test_positions_that_were_not_told_make_no_section() -> None:
    silent = gate("law").model_copy(update={"positions": {}})
    assert page_of_own("law", silent).positions == {}
    assert page_of_own("law", silent).lines()
