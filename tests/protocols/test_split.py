"""The held-out split: decided by content and seed alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.protocols.split import is_held_out

TEXTS = [f"document number {number} about something" for number in range(4000)]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_about_the_share_is_held_out(share: float) -> None:
    held_out = sum(is_held_out(text, share, 7) for text in TEXTS) / len(TEXTS)
    assert abs(held_out - share) < 4 * (share * (1 - share) / len(TEXTS)) ** 0.5


def test_a_larger_share_holds_out_what_a_smaller_one_does() -> None:
    small = {text for text in TEXTS if is_held_out(text, 0.1, 0)}
    assert small < {text for text in TEXTS if is_held_out(text, 0.2, 0)}


def test_another_seed_holds_out_others() -> None:
    first = {text for text in TEXTS if is_held_out(text, 0.1, 0)}
    second = {text for text in TEXTS if is_held_out(text, 0.1, 1)}
    assert len(first & second) < len(first) / 2


def test_the_split_is_pinned_across_releases() -> None:
    """Owners and coordinator may run different releases: these lines must never change."""
    assert [is_held_out(text, 0.5, 0) for text in ("a", "b", "c", "d", "Grüße", "")] == [
        True,
        True,
        True,
        False,
        False,
        True,
    ]


@given(st.text(), st.integers())
def test_extremes_and_white_space(text: str, seed: int) -> None:
    assert not is_held_out(text, 0, seed)
    assert is_held_out(text, 1, seed)
    assert is_held_out(f"  {text}\n", 0.5, seed) == is_held_out(text, 0.5, seed)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted 0 to 1"):
        is_held_out("a", 1.5, 0)
