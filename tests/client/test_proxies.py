"""The public documents that resemble an owner's text are found, and nothing but their ids is for others."""

import itertools
import random
import subprocess
import sys

import pytest

from motet.client.proxies import PREVIEWED, choose_proxies, document_id
from motet.protocols.errors import ConfigurationError, DataError

HEALTH = ["kidney", "heart", "liver", "lung", "fever", "acute", "chronic", "patient", "dose", "ward"]
TRADE = ["river", "border", "export", "tariff", "coast", "island", "harbour", "treaty", "price", "ship"]
COMMON = ["the", "of", "and", "in", "with", "on", "by", "from", "as", "for"]


def text(words: list[str], seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choices([*words, *COMMON], k=60))


OWN = [text(HEALTH, seed) for seed in range(30)]
ALIKE = [text(HEALTH, seed) for seed in range(100, 112)]
PUBLIC = [text(TRADE, seed) for seed in range(200, 260)] + ALIKE


def test_the_documents_most_like_the_owners_are_chosen() -> None:
    proxies = choose_proxies(OWN, PUBLIC, count=12, seed=0)
    assert {proxy.text for proxy in proxies.chosen} == set(ALIKE)
    assert set(proxies.ids) == {document_id(each) for each in ALIKE}
    assert proxies.considered == len(PUBLIC)


def test_the_order_of_the_ids_tells_no_score() -> None:
    proxies = choose_proxies(OWN, PUBLIC, count=30, seed=0)
    scores = [proxy.score for proxy in proxies.chosen]
    assert scores == sorted(scores, reverse=True)
    assert list(proxies.ids) == sorted(proxy.id for proxy in proxies.chosen)


def test_the_choice_depends_on_texts_and_seed_alone() -> None:
    first = choose_proxies(OWN, PUBLIC, count=20, seed=0)
    draw = random.Random(5)
    again = choose_proxies(draw.sample(OWN, len(OWN)), draw.sample(PUBLIC, len(PUBLIC)), count=20, seed=0)
    assert first == again
    assert choose_proxies(OWN, PUBLIC, count=20, seed=1) != first


def test_documents_are_judged_by_a_classifier_that_has_not_seen_them() -> None:
    """Where own and public text are of one kind, one that had seen the public would score nearly all of it below 0."""
    alike = [text(HEALTH, seed) for seed in range(300, 360)]
    scores = [proxy.score for proxy in choose_proxies(OWN, alike, count=60, seed=0).chosen]
    assert 10 < sum(score > 0 for score in scores) < 50


def test_ties_go_by_id() -> None:
    twins = [change(each) for each in ALIKE for change in (str.upper, str.title)]  # the features ignore case
    public = [*PUBLIC, *twins]
    chosen = choose_proxies(OWN, public, count=len(public), seed=0).chosen
    tied = [(one, other) for one, other in itertools.pairwise(chosen) if one.score == other.score]
    assert tied
    assert all(one.id < other.id for one, other in tied)


def test_a_public_document_that_the_owner_has_too_is_never_named() -> None:
    """Else the ids would tell who holds which document."""
    held = [ALIKE[0], ALIKE[1].upper(), ALIKE[2] + " and one sentence more at its end"]
    proxies = choose_proxies([*OWN, *held], PUBLIC, count=20, seed=0)
    assert not {document_id(each) for each in ALIKE[:3]} & set(proxies.ids)
    assert {document_id(each) for each in ALIKE[3:]} <= set(proxies.ids)
    assert proxies.considered == len(PUBLIC) - 3


def test_repeats_and_blanks_are_no_documents() -> None:
    proxies = choose_proxies([*OWN, ""], [*PUBLIC, *PUBLIC, " \n"], count=len(PUBLIC), seed=0)
    assert len(set(proxies.ids)) == len(proxies.ids) == len(PUBLIC)


def test_the_preview_shows_every_id_and_how_each_document_begins() -> None:
    proxies = choose_proxies(OWN, [*PUBLIC[:-1], "fever\x1b[31m\n" + ALIKE[-1]], count=12, seed=0)
    first, second, *rest = proxies.lines()
    assert first.startswith("12 ids of public documents would leave")
    assert second == "chosen out of 72; 12 of them look more like your text than like public text"
    assert [line.split()[0] for line in rest] == [proxy.id for proxy in proxies.chosen]
    assert sum("fever [31m " in line for line in rest) == 1
    assert not any("\x1b" in line or "\n" in line for line in rest)
    assert all(len(line) < 90 + PREVIEWED for line in rest)


def test_an_id_is_the_digest_of_the_text_as_it_stands() -> None:
    assert document_id("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert document_id("abc\n") != document_id("abc")


@pytest.mark.parametrize(("own", "public", "count"), [([], PUBLIC, 5), (OWN, PUBLIC[:10], 11), (OWN, PUBLIC[:4], 1)])
def test_too_little_text_is_refused(own: list[str], public: list[str], count: int) -> None:
    with pytest.raises(DataError, match=r"wanted at least 1 and \d+; give more text, or decline"):
        choose_proxies(own, public, count=count, seed=0)


def test_a_count_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="saw a count of 0 proxies, wanted 1 or more"):
        choose_proxies(OWN, PUBLIC, count=0, seed=0)


def test_who_has_no_scikit_learn_is_told_what_to_install() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from motet.client.proxies import choose_proxies\n"
        "choose_proxies(['own'], [f'public {n}' for n in range(9)], count=1, seed=0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigurationError: saw no scikit-learn" in result.stderr
    assert "motet[proxies]" in result.stderr
