"""Shapley's four axioms, and what leaving one out says instead."""

from itertools import permutations

import numpy as np
import pytest

from motet.protocols.errors import DataError
from motet.protocols.evaluation import leave_one_out, shapley, subsets

NAMES = ("code", "law", "news", "verse")


def game(seed: int, names: tuple[str, ...] = NAMES) -> dict[frozenset[str], float]:
    """Some value for each set."""
    draw = np.random.default_rng(seed)
    return {chosen: float(draw.normal()) for chosen in subsets(names)}


def test_it_is_the_mean_over_all_orders_of_joining() -> None:
    values = game(0)
    expected = dict.fromkeys(NAMES, 0.0)
    orders = list(permutations(NAMES))
    for order in orders:
        for place, name in enumerate(order):
            before = frozenset(order[:place])
            expected[name] += (values[before | {name}] - values[before]) / len(orders)
    assert shapley(values) == pytest.approx(expected)


def test_shares_sum_to_what_all_bring() -> None:
    values = game(1)
    assert sum(shapley(values).values()) == pytest.approx(values[frozenset(NAMES)] - values[frozenset()])


def test_two_that_are_alike_get_the_same_and_one_that_adds_nothing_gets_nothing() -> None:
    values = {chosen: float(bool(chosen & {"code", "law"})) for chosen in subsets(NAMES)}
    assert shapley(values) == pytest.approx({"code": 0.5, "law": 0.5, "news": 0.0, "verse": 0.0})
    # Each of the two stands in for the other, which leaving one out cannot see.
    assert leave_one_out(values) == {"code": 0.0, "law": 0.0, "news": 0.0, "verse": 0.0}


def test_shares_of_a_sum_are_sums_of_shares() -> None:
    one, two = game(2), game(3)
    both = {chosen: one[chosen] + two[chosen] for chosen in one}
    apart = {name: shapley(one)[name] + shapley(two)[name] for name in NAMES}
    assert shapley(both) == pytest.approx(apart)


def test_eight_experts_are_exact_and_nine_are_refused() -> None:
    worth = {f"e{number}": float(number) for number in range(8)}
    values = {chosen: sum(worth[name] for name in chosen) for chosen in subsets(worth)}
    assert len(values) == 256
    assert shapley(values) == pytest.approx(worth)
    with pytest.raises(DataError, match="saw 9 experts, wanted at most 8"):
        shapley({frozenset(f"e{number}" for number in range(9)): 0.0})


def test_a_missing_set_is_named() -> None:
    values = game(4)
    del values[frozenset({"law", "code"})]
    with pytest.raises(DataError, match=r"no value for code \+ law, one of 1 expert sets"):
        shapley(values)
    del values[frozenset()]
    with pytest.raises(DataError, match="no value for no expert"):
        shapley(values)
    del values[frozenset({"code", "law", "news"})]
    with pytest.raises(DataError, match=r"code \+ law \+ news"):
        leave_one_out(values)


def test_leaving_one_out_needs_no_other_sets() -> None:
    values = {frozenset({"code", "law"}): -2.0, frozenset({"law"}): -3.0, frozenset({"code"}): -2.5}
    assert leave_one_out(values) == {"code": 1.0, "law": 0.5}
