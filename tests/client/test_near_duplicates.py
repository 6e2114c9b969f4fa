"""Repeats go, whatever their order; documents that only resemble each other stay."""

import random

from hypothesis import given
from hypothesis import strategies as st

from motet.client.near_duplicates import apart, distinct

WORDS = [f"word{number}" for number in range(500)]


def document(seed: int, words: int = 80) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def test_copies_in_other_case_and_spacing_go() -> None:
    kept = distinct([document(2), document(1), document(1).upper(), document(1).replace(" ", "\n  ")])
    assert len(kept) == 2
    assert kept[0] == 0


def test_an_edited_copy_goes() -> None:
    assert len(distinct([document(1), document(1) + " and one sentence more at its end"])) == 1


def test_a_passage_goes_wherever_it_stands() -> None:
    long, passage = document(1, 400), " ".join(document(1, 400).split()[100:150])
    assert distinct([long, passage]) == [0]
    assert distinct([passage, long]) == [1]


def test_a_text_patched_together_from_two_others_goes() -> None:
    first, second = document(1, 100), document(2, 100)
    assert distinct([first, second, " ".join(first.split()[:40] + second.split()[:40])]) == [0, 1]


def test_texts_with_a_common_header_stay() -> None:
    header = " ".join(WORDS[:20])
    assert distinct([f"{header} {document(seed)}" for seed in range(3)]) == [0, 1, 2]


def test_wordless_texts_go() -> None:
    assert distinct(["", "  \n", "--- ... ---", "one word"]) == [3]


@given(st.lists(st.integers(0, 5), max_size=12), st.randoms(use_true_random=False))
def test_what_is_kept_does_not_depend_on_the_order(seeds: list[int], draw: random.Random) -> None:
    texts = [document(seed, 30) for seed in seeds]
    shuffled = draw.sample(texts, len(texts))
    assert {texts[index] for index in distinct(texts)} == {shuffled[index] for index in distinct(shuffled)}
    kept = [texts[index] for index in distinct(texts)]
    assert distinct(kept) == list(range(len(kept)))


def test_a_text_that_repeats_another_side_goes() -> None:
    held_out = document(1, 200)
    passage = " ".join(held_out.split()[40:80])
    around = document(2, 900) + " " + held_out + " " + document(3, 900)
    assert apart([passage, around, document(4), document(5)], [held_out, document(6)]) == [2, 3]


def test_texts_beside_others_with_a_common_header_stay() -> None:
    header = " ".join(WORDS[:20])
    assert apart([f"{header} {document(1)}", "", "kidney"], [f"{header} {document(2)}", "", "heart"]) == [0, 1, 2]
