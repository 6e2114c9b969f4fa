"""Scores of all stages and seeds become one result; what does not fit together is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from motet.bench.quality.results import Results, Scores, base, best_merging, merged, ordered, read_scores
from motet.protocols.errors import DataError

SIZES = (100, 200, 300)


def scores(split: str = "test", settings: dict[str, Any] | None = None, **bits: dict[str, float]) -> Scores:
    """`bits` is system -> domain -> bits per byte, the same for every document."""
    systems = {
        system.replace("_", ":"): {
            domain: {"nats": [value * size * math.log(2) for size in SIZES], "bytes": SIZES}
            for domain, value in row.items()
        }
        for system, row in bits.items()
    }
    return Scores.model_validate({"split": split, "systems": systems, "settings": settings or {}})


ANCHOR = {"public": 2.0, "law": 4.0, "code": 5.0}
BEST = {"public": 2.1, "law": 2.0, "code": 3.0}


def test_stages_are_put_side_by_side_and_only_tests_count() -> None:
    one = scores(anchor={"public": 2.0, "law": 4.0}, soup={"public": 2.2})
    two = scores(settings={"soup": {"rate": 0.1}}, anchor={"public": 2.0, "code": 5.0}, soup={"law": 3.0, "code": 4.0})
    seed = merged([one, scores("validation", {"soup": {"rate": 0.2}}, anchor={"public": 9.0}), two])
    assert {system: set(row) for system, row in seed.measured.items()} == {
        "anchor": {"public", "law", "code"},
        "soup": {"public", "law", "code"},
    }
    assert seed.settings == {"soup": {"rate": 0.1}}
    assert Results.of([seed]).systems["anchor"] == pytest.approx(ANCHOR | {"average": 11 / 3})


def test_two_stages_that_disagree_are_refused() -> None:
    with pytest.raises(DataError, match="anchor scored twice on law"):
        merged([scores(anchor={"law": 4.0}), scores(anchor={"law": 4.1})])


def test_the_result_of_two_seeds() -> None:
    rows = {"composite_filter": {"public": 2.0, "law": 2.2, "code": 3.2}, "anchor": ANCHOR, "specialist": BEST}
    again = {name: {domain: value + 0.2 for domain, value in row.items()} for name, row in rows.items()}
    chosen = [{"composite:filter": {"stay": value}} for value in (0.9, 0.95)]
    seeds = [merged([scores(settings=each, **row)]) for each, row in zip(chosen, (rows, again), strict=True)]
    found = Results.of(seeds).as_json()
    json.dumps(found, allow_nan=False)
    assert list(found["systems"]) == ["anchor", "specialist", "composite:filter"]
    assert found["systems"]["composite:filter"]["law"] == pytest.approx(2.3)
    assert found["systems"]["composite:filter"]["average"] == pytest.approx((2.0 + 2.2 + 3.2) / 3 + 0.1)
    assert found["gap_closed"]["composite:filter"] == pytest.approx({"law": 0.9, "code": 0.9})
    assert found["gap"]["composite:filter"] == pytest.approx({"mean": 0.9, "worst": 0.9})
    low, high = found["intervals"]["anchor"]["law"]
    assert low < found["systems"]["anchor"]["law"] < high  # seeds differ, documents do not
    assert found["settings"] == {"composite:filter": [{"stay": 0.9}, {"stay": 0.95}]}
    compared = {(each["a"], each["b"]) for each in found["comparisons"]}
    assert compared == {("composite:filter", "anchor")}


def test_seeds_on_other_systems_are_refused() -> None:
    with pytest.raises(DataError, match="different systems"):
        Results.of([merged([scores(anchor=ANCHOR)]), merged([scores(anchor=ANCHOR, soup=BEST)])])


def test_what_the_composite_is_held_against() -> None:
    systems = {name: {"average": value} for name, value in (("soup", 3.0), ("dare+public", 2.5), ("btm", 1.0))}
    assert best_merging(systems) == "dare+public"
    assert best_merging({"btm": {"average": 1.0}, "soup": {"law": 1.0}}) is None
    rows = dict.fromkeys(("anchor", "soup", "joint", "composite_token", "composite_filter", "stock"), BEST)
    compared = [(each.a, each.b) for each in Results.of([merged([scores(**rows)])]).comparisons]
    assert compared[:4] == [
        ("composite:filter", "soup"),
        ("composite:filter", "joint"),
        ("composite:filter", "composite:token"),
        ("composite:filter", "anchor"),
    ]
    assert ("stock", "composite:token") in compared
    assert ("composite:token", "composite:token") not in compared


def test_opting_out() -> None:
    without = {"public": 2.0, "law": 4.04, "code": 3.03}
    seed = merged([scores(anchor=ANCHOR, composite_filter=BEST, **{"composite_filter-without_law": without})])
    assert list(seed.measured) == ["anchor", "composite:filter", "composite:filter-without:law"]
    costs = Results.of([seed]).opt_out["law"]
    assert costs.own_over_anchor == pytest.approx(0.01)
    assert costs.change["code"] == pytest.approx(0.01)


def test_order_and_variants() -> None:
    assert [base(name) for name in ("soup+public", "composite:filter", "dare@specialists", "btm")] == [
        *("soup", "composite", "dare", "btm")
    ]
    names = ["stock", "control", "composite:token", "joint", "soup", "anchor", "soup+public"]
    assert ordered(names) == ["anchor", "soup", "soup+public", "joint", "composite:token", "stock", "control"]


@pytest.mark.parametrize("content", ["", "{}", '{"split": "train", "systems": {}}', None])
def test_scores_that_are_none(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    with pytest.raises(DataError, match=r"scores\.json"):
        read_scores(tmp_path)


def test_without_specialists_there_is_no_gap() -> None:
    results = Results.of([merged([scores(anchor=ANCHOR, soup=BEST)])])
    assert results.gap_closed == {}
    lines = results.table()
    assert lines[0].split() == ["public", "law", "code", "average", "gap", "worst"]
    assert lines[2].split() == ["soup", "2.100", "2.000", "3.000", "2.367", "-", "-"]


def test_ranks_are_held_against_full_experts() -> None:
    small, large = {"parameters": 100, "share": 0.1}, {"parameters": 320, "share": 0.32}
    settings = {"lowrank:32": large, "lowrank:8": small, "squeezed:8": small}
    rows = {"lowrank_32": BEST, "lowrank_8": ANCHOR, "squeezed_8": {"public": 2.05, "law": 3.0, "code": 4.0}}
    seed = merged([scores(settings=settings, anchor=ANCHOR, specialist=BEST, composite_filter=BEST, **rows)])
    results = Results.of([seed])
    assert list(results.systems)[2:] == ["composite:filter", "lowrank:32", "lowrank:8", "squeezed:8"]
    found = {point["system"]: point for point in results.as_json()["ranks"]}
    assert list(found) == ["lowrank:8", "lowrank:32", "squeezed:8", "composite:filter"]
    assert [found[name]["gain_kept"] for name in found] == pytest.approx([0.0, 1.0, (1.95 / 3) / (3.9 / 3), 1.0])
    assert [found[name]["gap_mean"] for name in found] == pytest.approx([0.0, 1.0, 0.5, 1.0])
    assert (found["squeezed:8"]["rank"], found["squeezed:8"]["parameters"], found["squeezed:8"]["share"]) == (
        8,
        100,
        0.1,
    )
    assert (found["composite:filter"]["rank"], found["composite:filter"]["parameters"]) == (None, 1000)
    compared = {(each.a, each.b) for each in results.comparisons}
    assert {(name, "composite:filter") for name in settings} <= compared
    page = results.page(title="small", notes=[], seeds=1, seconds=1.0)
    assert "Low-rank experts" in page.markdown()


def test_ranks_without_full_experts_keep_no_share_of_anything() -> None:
    seed = merged([scores(settings={"lowrank:8": {"parameters": 9, "share": 0.5}}, anchor=ANCHOR, lowrank_8=BEST)])
    (point,) = Results.of([seed]).ranks
    assert (point.system, point.gain_kept, point.gap_mean) == ("lowrank:8", None, None)
