"""The verdict: what is held against what, and how it is said."""

import numpy as np
import pytest

from motet.client.composite_trial import CompositeTrial, against, systems
from motet.protocols.evaluation import DocumentLosses


def losses(**shifts: float) -> dict[str, DocumentLosses]:
    """Documents of unlike difficulty; every system is better or worse by about so many bits per byte on each."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(200, 2000, size=40)
    base, noise = draw.uniform(0.5, 3.0, size=40), draw.normal(size=40) * 0.01
    names = {name: name.replace("_", "-") for name in shifts}
    return {
        names[name]: DocumentLosses((base + shift + noise * (shift != 0)) * sizes * np.log(2), sizes)
        for name, shift in shifts.items()
    }


def test_a_gain_is_paired_by_document() -> None:
    trial = CompositeTrial.of(losses(anchor=0.0, composite=-0.05))
    gain = trial.differences["composite"]
    assert gain.mean == pytest.approx(-0.05, abs=0.01)
    assert -0.06 < gain.low < gain.high < -0.04  # documents differ by 2.5 bits, and yet
    assert "needs 0.0496" in trial.verdict
    assert trial.lines()[-1] == trial.verdict
    assert trial.as_json()["differences"]["composite"] == {
        "against": "anchor",
        "mean": gain.mean,
        "low": gain.low,
        "high": gain.high,
    }


@pytest.mark.parametrize(
    ("shifts", "said"),
    [
        ({"composite": 0.0}, "the composite and the anchor cannot be told apart"),
        ({"composite": 0.1}, "bits per byte more than the anchor"),
        ({"composite": -0.1, "composite_with": -0.3, "expert": -0.2}, "Your expert takes off another 0.2"),
        ({"composite": -0.1, "composite_with": 0.3, "expert": -0.2}, "Your expert makes it worse by 0.4"),
        ({"composite": -0.1, "composite_with": -0.1, "expert": 0.0}, "What your expert adds cannot be told from"),
        ({"composite": -0.3, "composite_without": -0.1, "expert": 0.0}, "the composite without you needs 0.0996"),
    ],
)
def test_the_verdict_says_what_is_so(shifts: dict[str, float], said: str) -> None:
    assert said in CompositeTrial.of(losses(anchor=0.0, **shifts)).verdict


def test_few_documents_are_told() -> None:
    few = {name: DocumentLosses(each.nats[:5], each.bytes[:5]) for name, each in losses(anchor=0, composite=1).items()}
    assert "measured on 5 documents only" in CompositeTrial.of(few).verdict


def test_what_is_scored_and_held_against_what() -> None:
    assert systems(member=False, added=False) == ["anchor", "composite"]
    assert systems(member=True, added=True) == ["anchor", "expert", "composite", "composite-without", "composite-with"]
    assert against("composite-with", systems(member=True, added=True)) == "composite-without"
    assert against("composite-with", systems(member=False, added=True)) == "composite"
    assert against("composite", systems(member=False, added=True)) == "anchor"
    assert against("expert", systems(member=True, added=False)) == "anchor"
