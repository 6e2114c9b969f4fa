"""Diagnostics as they leave an owner: sums over the same tokens, of the composite's experts and rows, or refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from motet.protocols.evaluation.diagnosis import Diagnostics, LayerSums, merged
from motet.protocols.evaluation.positions import Positions
from motet.protocols.evaluation.reliability import Histogram

HALF = Histogram(tokens=(*[0] * 5, 4, *[0] * 4), mass=(*[0.0] * 5, 2.0, *[0.0] * 4))


def layer(**changes: Any) -> LayerSums:
    """Four tokens, half and half."""
    given = {"mass": {"anchor": 2.0, "law": 2.0}, "entropy": 2.77, "histograms": {"anchor": HALF, "law": HALF}}
    return LayerSums(**given | changes)


def found(**changes: Any) -> Diagnostics:
    """What is told of four tokens."""
    given = {"tokens": 4, "layers": (layer(),), "positions": {"composite": Positions(nats=(3.0, 2.0), tokens=(2, 2))}}
    return Diagnostics(**given | changes)


def test_what_fits_has_no_problem() -> None:
    assert found().problem({"anchor", "law"}, ("anchor", "composite"), layers=1) is None
    assert found(layers=()).problem({"anchor"}, ("composite",), layers=0) is None


def test_other_experts_other_rows_and_another_depth_are_named() -> None:
    assert "layer 0 with gate mass for anchor, law" in str(
        found().problem({"anchor", "news"}, ("composite",), layers=1)
    )
    assert "loss by position of composite" in str(found().problem({"anchor", "law"}, ("anchor",), layers=1))
    assert "no loss by position" in str(found(positions={}).problem({"anchor", "law"}, ("anchor",), layers=1))
    assert "gates of 1 layers, wanted 2" in str(found().problem({"anchor", "law"}, ("composite",), layers=2))


@pytest.mark.parametrize("changes", [{"mass": {"anchor": 2.0, "law": 4.1}}, {"entropy": 8.1}])
def test_more_than_weights_of_these_tokens_can_sum_to_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="more than 4 tokens can have"):
        found(layers=(layer(**changes),))


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": 5},
        {"positions": {"composite": Positions(nats=(3.0,), tokens=(3,))}},
        {"layers": (layer(histograms={"anchor": HALF}),)},
    ],
)
def test_sums_over_other_tokens_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="wanted"):
        found(**changes)


def test_positions_need_as_many_sums_as_counts() -> None:
    for nats, tokens in (((1.0,), (1, 2)), ((-1.0,), (1,)), ((1.0,), (-1,))):
        with pytest.raises(ValidationError, match="none of them negative"):
            Positions(nats=nats, tokens=tokens)


def test_histograms_add_up() -> None:
    both = merged([HALF, HALF])
    assert (both.tokens[5], both.mass[5]) == (8, 4.0)
    assert merged([HALF]) == HALF
