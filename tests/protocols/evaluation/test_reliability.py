"""Reliability from sums: what a gate promises against what comes true."""

import numpy as np
import pytest
from pydantic import ValidationError

from motet.protocols.errors import DataError
from motet.protocols.evaluation import BINS, Histogram, reliability


def histogram(masses: np.ndarray) -> Histogram:
    """The histogram of these masses."""
    places = np.minimum((masses * BINS).astype(int), BINS - 1)
    return Histogram(
        tokens=tuple(np.bincount(places, minlength=BINS).tolist()),
        mass=tuple(np.bincount(places, weights=masses, minlength=BINS).tolist()),
    )


def two_domains(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The true posterior of law against news where x is normal around 1 and -1, for tokens of each."""
    draw = np.random.default_rng(seed)
    law, news = draw.normal(1, 1, 50_000), draw.normal(-1, 1, 50_000)
    return 1 / (1 + np.exp(-2 * law)), 1 / (1 + np.exp(-2 * news))


def test_a_true_posterior_is_calibrated() -> None:
    law, news = two_domains(0)
    found = reliability("law", {"law": histogram(law), "news": histogram(news)})
    assert found.error < 0.01
    assert len(found.rows) == BINS
    for row in found.rows:
        assert row.right == pytest.approx(row.predicted, abs=0.04)
    assert sum(row.tokens for row in found.rows) == 100_000


def test_an_over_confident_gate_is_found_out() -> None:
    sharpened = [mass**4 / (mass**4 + (1 - mass) ** 4) for mass in two_domains(0)]
    found = reliability("law", {"law": histogram(sharpened[0]), "news": histogram(sharpened[1])})
    assert found.error > 0.05
    assert found.rows[0].predicted < found.rows[0].right
    assert found.rows[-1].predicted > found.rows[-1].right


def test_a_domain_with_little_text_weighs_as_much() -> None:
    law, news = two_domains(0)
    found = reliability("law", {"law": histogram(law), "news": histogram(news[:5000])})
    assert found.error < 0.02


def test_empty_bins_are_left_out() -> None:
    found = reliability("law", {"law": histogram(np.array([0.95])), "news": histogram(np.array([0.05, 0.05]))})
    assert [(row.predicted, row.right, row.tokens) for row in found.rows] == [
        (pytest.approx(0.05), 0.0, 2),
        (pytest.approx(0.95), 1.0, 1),
    ]
    assert found.error == pytest.approx(0.05)


def test_one_domain_alone_says_nothing() -> None:
    one = histogram(np.array([0.5]))
    for given in ({"law": one}, {"news": one}, {"news": one, "verse": one}):
        with pytest.raises(DataError, match="wanted law and another domain"):
            reliability("law", given)


def test_masses_outside_their_bin_are_refused() -> None:
    with pytest.raises(ValidationError, match="bin 1: 2 tokens cannot have a mass"):
        Histogram(tokens=(0, 2, *[0] * 8), mass=(0.0, 0.5, *[0.0] * 8))
    with pytest.raises(ValidationError, match="bin 0: -1 tokens"):
        Histogram(tokens=(-1, *[0] * 9), mass=(0.0,) * 10)
