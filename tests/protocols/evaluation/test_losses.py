"""The matrix: bits per byte from sums, domains of equal weight, the same documents for all."""

import math

import numpy as np
import pytest

from motet.protocols.errors import DataError
from motet.protocols.evaluation import DocumentLosses, bits_per_byte, matrix


def losses(bits: list[float], sizes: list[int]) -> DocumentLosses:
    """Documents of `sizes` bytes that cost so many bits each."""
    return DocumentLosses(np.array(bits) * math.log(2), np.array(sizes))


def test_bits_per_byte_weighs_documents_by_their_bytes() -> None:
    assert bits_per_byte(losses([10, 90], [10, 30])) == pytest.approx(100 / 40)


def test_the_average_is_over_domains_whatever_their_size() -> None:
    measured = {"soup": {"public": losses([1000], [1000]), "law": losses([30], [10])}}
    assert matrix(measured) == {"soup": pytest.approx({"public": 1.0, "law": 3.0, "average": 2.0})}


def test_several_seeds_give_their_mean() -> None:
    runs = [{"soup": {"law": losses([bits], [10])}} for bits in (20, 40)]
    assert matrix(runs)["soup"]["law"] == pytest.approx(3.0)


def test_a_system_that_was_not_measured_everywhere_has_no_average() -> None:
    cell = losses([10], [10])
    cells = matrix({"soup": {"public": cell, "law": cell}, "specialist": {"law": cell}})
    assert set(cells["soup"]) == {"public", "law", "average"}
    assert set(cells["specialist"]) == {"law"}


def test_other_documents_are_refused() -> None:
    with pytest.raises(DataError, match="soup measured on other documents of law"):
        matrix({"anchor": {"law": losses([10], [10])}, "soup": {"law": losses([10], [11])}})


def test_seeds_with_other_systems_are_refused() -> None:
    cell = losses([10], [10])
    with pytest.raises(DataError, match="different systems"):
        matrix([{"anchor": {"law": cell}}, {"soup": {"law": cell}}])


def test_nothing_measured_is_refused() -> None:
    for nothing in ({}, {"anchor": {}}, []):
        with pytest.raises(DataError, match="no measurement"):
            matrix(nothing)


def test_a_domain_called_average_is_refused() -> None:
    with pytest.raises(DataError, match="rename it"):
        matrix({"anchor": {"average": losses([10], [10])}})


@pytest.mark.parametrize(
    ("nats", "sizes", "message"),
    [
        ([], [], "some documents"),
        ([1.0], [1, 2], "some documents"),
        ([math.inf], [1], "not finite"),
        ([1.0], [0], "without bytes"),
    ],
)
def test_losses_that_make_no_sense_are_refused(nats: list[float], sizes: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DocumentLosses(np.array(nats), np.array(sizes))
