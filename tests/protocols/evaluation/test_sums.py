"""Sums that may leave their owner: of ten tokens at least, the same in all, and still sums that are possible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.protocols.evaluation.positions import Positions
from motet.protocols.evaluation.reliability import BINS, Histogram
from motet.protocols.evaluation.sums import LEAST_TOKENS, runs_of_enough

COUNTS = st.lists(st.one_of(st.just(0), st.integers(0, 12), st.integers(0, 1000)), min_size=BINS, max_size=BINS)


def test_runs_take_neighbours_and_the_last_what_is_left_over() -> None:
    assert runs_of_enough((40, 3, 0, 25)) == [range(1), range(1, 4)]
    assert runs_of_enough((5, 5, 10, 3, 0)) == [range(2), range(2, 5)]
    assert runs_of_enough((4, 5, 0)) == [range(3)]
    assert runs_of_enough(()) == []


@given(COUNTS, st.floats(0, 0.999))
def test_no_bin_holds_few_tokens_and_all_of_them_are_told(counts: list[int], inside: float) -> None:
    masses = tuple(count * (place + inside) / BINS for place, count in enumerate(counts))
    told = Histogram(tokens=tuple(counts), mass=masses).coarse()  # refuses masses that its bins cannot have
    assert sum(told.tokens) == sum(counts)
    assert sum(told.mass) == pytest.approx(sum(masses))
    assert all(count >= LEAST_TOKENS for count in told.tokens if count) or sum(counts) < LEAST_TOKENS
    assert told.coarse().tokens == told.tokens


@given(COUNTS)
def test_no_bucket_holds_few_tokens_and_all_of_them_are_told(counts: list[int]) -> None:
    told = Positions(nats=tuple(2.0 * count for count in counts), tokens=tuple(counts)).coarse()
    assert sum(told.tokens) == sum(counts)
    assert list(told.nats) == [2.0 * count for count in told.tokens]
    assert all(count >= LEAST_TOKENS for count in told.tokens if count) or sum(counts) < LEAST_TOKENS


def test_a_bucket_of_few_tokens_joins_the_larger_one_beside_it() -> None:
    assert Positions(nats=(8.0, 8.0, 30.0, 9.0), tokens=(4, 4, 20, 3)).coarse().tokens == (0, 0, 31, 0)
    assert Positions(nats=(20.0, 20.0, 9.0), tokens=(20, 20, 3)).coarse().tokens == (20, 23, 0)
