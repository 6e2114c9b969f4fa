"""Intervals: as wide as statistics says, paired, repeatable, and wider when seeds differ."""

import math

import numpy as np
import pytest

from motet.protocols.errors import DataError
from motet.protocols.evaluation import DocumentLosses, Interval, difference, draws, intervals, matrix, pool

DOCUMENTS = 200
SIZES = np.full(DOCUMENTS, 100)


def losses(rates: np.ndarray) -> DocumentLosses:
    """Documents of 100 bytes each, at so many bits per byte."""
    return DocumentLosses(rates * SIZES * math.log(2), SIZES)


def rates(seed: int, spread: float = 0.5) -> np.ndarray:
    """Bits per byte around 3, document by document."""
    return 3 + spread * np.random.default_rng(seed).standard_normal(DOCUMENTS)


def test_an_interval_is_as_wide_as_the_standard_error_says() -> None:
    values = rates(1)
    low, high = intervals({"soup": {"law": losses(values)}})["soup"]["law"]
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(DOCUMENTS), rel=0.1)


def test_a_lower_level_is_narrower() -> None:
    measured = {"soup": {"law": losses(rates(1))}}
    wide, narrow = intervals(measured)["soup"]["law"], intervals(measured, level=0.5)["soup"]["law"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_most_intervals_hold_the_truth() -> None:
    held = 0
    for seed in range(100):
        low, high = intervals({"soup": {"law": losses(rates(seed))}}, resamples=200)["soup"]["law"]
        held += low <= 3 <= high
    assert 88 <= held <= 99


def test_the_average_is_steadier_than_its_domains() -> None:
    measured = {"soup": {"law": losses(rates(1)), "news": losses(rates(2))}}
    width = {domain: high - low for domain, (low, high) in intervals(measured)["soup"].items()}
    assert width["average"] < min(width["law"], width["news"])


def test_the_same_call_gives_the_same_figures_whatever_else_was_measured() -> None:
    alone = {"soup": {"law": losses(rates(1))}}
    beside = {"soup": {"news": losses(rates(2)), "law": losses(rates(1))}}
    assert intervals(alone)["soup"]["law"] == intervals(beside)["soup"]["law"]
    assert intervals(alone, seed=1)["soup"]["law"] != intervals(alone)["soup"]["law"]


def test_a_difference_is_paired() -> None:
    base = rates(1, spread=1.0)
    measured = {"soup": {"law": losses(base)}, "composite": {"law": losses(base * 0.99)}}
    found = difference(measured, "composite", "soup")["law"]
    assert found.mean == pytest.approx(-0.01)
    assert found.high - found.low < 1e-9  # each alone is uncertain by 9 %
    assert not found.includes_zero
    absolute = difference(measured, "composite", "soup", relative=False)
    assert absolute["average"].mean == pytest.approx(-0.01 * base.mean())


def test_a_difference_of_nothing_includes_zero() -> None:
    found = difference({"a": {"law": losses(rates(1))}, "b": {"law": losses(rates(2))}}, "a", "b")["average"]
    assert found.includes_zero
    assert not Interval(mean=0.1, low=0.01, high=0.2).includes_zero


def test_a_difference_to_an_unknown_system_is_refused() -> None:
    with pytest.raises(DataError, match="no measurement of stew, wanted one of soup"):
        difference({"soup": {"law": losses(rates(1))}}, "soup", "stew")


def test_the_same_seed_thrice_changes_nothing() -> None:
    run = {"soup": {"law": losses(rates(1)), "news": losses(rates(2))}}
    alone, thrice = draws(run)["soup"], draws([run, run, run])["soup"]
    for domain, values in alone.items():
        np.testing.assert_allclose(thrice[domain], values)


def test_seeds_that_differ_widen_the_interval_as_their_spread_says() -> None:
    flat = np.full(DOCUMENTS, 3.0)
    runs = [{"soup": {"law": losses(flat + shift)}} for shift in (-0.1, 0.0, 0.1)]
    spread = draws(runs, resamples=4000)["soup"]["law"].std()
    assert spread == pytest.approx(0.1 / math.sqrt(3), rel=0.05)  # the standard error with n - 1 degrees of freedom
    found = pool(runs)["soup"]["law"]
    assert found.mean == pytest.approx(3.0)
    assert found.low < 2.95 < 3.05 < found.high


def test_seeds_are_paired_too() -> None:
    flat = np.full(DOCUMENTS, 3.0)
    runs = [
        {"soup": {"law": losses(flat + shift)}, "composite": {"law": losses(flat + shift - 0.2)}}
        for shift in (-0.5, 0.0, 0.5)
    ]
    found = difference(runs, "composite", "soup", relative=False)["average"]
    assert (found.mean, found.low, found.high) == pytest.approx((-0.2, -0.2, -0.2))


def test_intervals_and_matrix_have_the_same_cells() -> None:
    cell = losses(rates(1))
    measured = {"soup": {"public": cell, "law": cell}, "specialist": {"law": cell}}
    cells, ends = matrix(measured), intervals(measured, resamples=20)
    assert {system: set(row) for system, row in cells.items()} == {system: set(row) for system, row in ends.items()}
