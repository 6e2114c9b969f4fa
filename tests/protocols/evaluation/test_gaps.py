"""Gap closed: 0 at the anchor, 1 at the specialist, nothing where there is no gap."""

import pytest

from motet.protocols.errors import DataError
from motet.protocols.evaluation import Gap, gap_closed, summary

CELLS = {
    "anchor": {"public": 2.0, "law": 4.0, "news": 5.0, "average": 3.7},
    "specialist": {"law": 3.0, "news": 3.0},
    "composite": {"public": 2.1, "law": 3.1, "news": 4.0, "average": 3.1},
}


def test_the_gap_runs_from_the_anchor_to_the_specialist_over_closed_domains_only() -> None:
    assert gap_closed(CELLS) == {
        "anchor": {"law": 0.0, "news": 0.0},
        "specialist": {"law": 1.0, "news": 1.0},
        "composite": pytest.approx({"law": 0.9, "news": 0.5}),
    }


def test_specialists_may_be_given_domain_by_domain() -> None:
    found = gap_closed(CELLS, specialist={"law": 2.2, "news": 4.0})
    assert found["composite"] == pytest.approx({"law": 0.5, "news": 1.0})


def test_a_specialist_that_gains_nothing_leaves_no_gap() -> None:
    found = gap_closed(CELLS, specialist={"law": 4.0, "news": 3.0})
    assert found["composite"] == {"law": None, "news": pytest.approx(0.5)}
    assert summary(found["composite"]) == Gap(mean=0.5, worst=0.5)
    assert summary({"law": None}) is None


def test_a_missing_specialist_is_named() -> None:
    with pytest.raises(DataError, match="no specialist's figure for news"):
        gap_closed(CELLS, specialist={"law": 2.0})
    with pytest.raises(DataError, match="no closed domain measured under 'base'"):
        gap_closed(CELLS, anchor="base")


def test_the_summary_is_mean_and_worst() -> None:
    found = summary({"law": 0.9, "news": 0.5})
    assert found is not None
    assert (found.mean, found.worst) == pytest.approx((0.7, 0.5))
