"""Expert sets: named by content, complete in their errors, never without the anchor."""

from dataclasses import replace

import pytest

from motet.protocols.errors import ExpertSetError
from motet.serving.expert_sets import Roster, asked_by_name, expert_set_digest

A, B, C = ("sha256:" + letter * 64 for letter in "abc")
ROSTER = Roster(names=("anchor", "law", "news"), contributions=(B, C), anchor=A)


def test_a_set_is_named_by_what_its_members_are() -> None:
    renamed = replace(ROSTER, names=("anchor", "justice", "press"))
    turned = Roster(names=("anchor", "news", "law"), contributions=(C, B), anchor=A)
    assert ROSTER.every().digest == renamed.every().digest == turned.every().digest == expert_set_digest(A, {C, B})
    swapped = Roster(names=("anchor", "law", "news"), contributions=(C, B), anchor=A)
    assert ROSTER.choose(include=["law"]).digest != swapped.choose(include=["law"]).digest
    assert ROSTER.choose(include=["law"]).digest == ROSTER.choose(exclude=["news"]).digest
    assert replace(ROSTER, anchor=B).every().digest != ROSTER.every().digest


def test_the_digest_of_a_set_does_not_change_between_releases() -> None:
    """Logs, statements and salts of other servers' caches hold it."""
    assert ROSTER.every().digest == "sha256:43176e6c610498f1bec354ada2477ec95e7d9871ae3cf114ac53ff3bf900f288"


def test_the_anchor_is_in_every_set() -> None:
    assert ROSTER.choose(include=["news"]).mask == (True, False, True)
    assert ROSTER.choose(include=["anchor"]).names == ("anchor",)
    assert ROSTER.choose(exclude=["law", "news"]).names == ("anchor",)
    assert ROSTER.choose(allowed=frozenset()).names == ("anchor",)
    assert ROSTER.choose(allowed={"news"}).names == ("anchor", "news")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"include": ["lor"]}, "unknown experts lor; this model has anchor, law, news"),
        ({"include": []}, "empty list"),
        ({"exclude": ["anchor"]}, "the anchor always takes part"),
        ({"include": ["law"], "exclude": ["law"]}, "law both"),
        (
            {"include": ["law"], "allowed": {"news"}},
            "saw law, wanted .* here and now: anchor, news",
        ),
    ],
)
def test_what_is_no_set_is_told(asked: dict, said: str) -> None:
    with pytest.raises(ExpertSetError, match=said):
        ROSTER.choose(**asked)


def test_a_models_name_may_say_who_takes_part() -> None:
    assert asked_by_name("demo") == ("demo", None, ())
    assert asked_by_name("demo:-law,-news") == ("demo", None, ("law", "news"))
    assert asked_by_name("demo:+law, +news") == ("demo", ("law", "news"), ())
    for wrong in ("demo:", "demo:law", "demo:-", "demo:-law,"):
        with pytest.raises(ExpertSetError, match="wanted NAME"):
            asked_by_name(wrong)
