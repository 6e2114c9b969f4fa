"""What training is made from: texts that keep apart, and terms that the charter accepts."""

import json

import pytest

from motet.client.data import load_public
from motet.client.owner import OwnerHome
from motet.client.preparation import load_texts, prepare
from motet.protocols.charter import ExpertRules
from motet.protocols.errors import ConfigurationError
from motet.protocols.signing import seal


def long(number: int) -> str:
    return " ".join(f"term{number}x{word}" for word in range(40))


def test_nobody_trains_on_text_that_somebody_is_scored_on(make_home, federation, tmp_path) -> None:
    public = [json.loads(line)["text"] for line in (federation.anchor / "public.jsonl").read_text().splitlines()]
    scored = load_public(federation.anchor / "public.jsonl").held_out
    home = make_home(texts=[*(long(number) for number in range(60)), *public])
    own, shared = load_texts(home)
    assert scored
    assert not set(own.train) & set(scored)
    assert not set(shared.train) & {*own.held_out, *scored}
    assert set(own.held_out) & set(public), "the case is not what it should be"


def test_a_licence_that_the_charter_refuses_is_told_before_hours_of_training(make_home, federation) -> None:
    home = make_home()
    strict = federation.charter.model_copy(update={"experts": ExpertRules(licences=("CC0-1.0", "MIT"))})
    (home.path / "charter.signed.json").write_bytes(seal(strict, federation.key).canonical())
    with pytest.raises(ConfigurationError, match=r"'Apache-2.0', wanted one that the charter accepts: CC0-1.0, MIT"):
        prepare(OwnerHome.load(home.path))
