"""Proxies leave only if charter and owner both say so, in the manifest alone, and the owner sees them first."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from motet.cli import build
from motet.client.contribute import describe, export
from motet.client.data import load_public
from motet.client.outbox import PROXIES_NAME, Packed, find_packed
from motet.client.owner import OwnerHome
from motet.client.plan import plan_training
from motet.client.preparation import prepare
from motet.client.proxy_list import name_proxies, wanted_proxies
from motet.client.spool import Spool
from motet.client.worker import make_contribution, run_worker
from motet.protocols.charter import RoutingRules
from motet.protocols.container import read_container
from motet.protocols.contribution import Contribution
from motet.protocols.control import TrainRequest
from motet.protocols.errors import ConfigurationError, DataError
from motet.protocols.split import document_id

from .conftest import Federation, MakeHome, edit, packed_of, sentences

ASKED = 6


def asking(federation: Federation, count: int) -> Federation:
    rules = RoutingRules(kind="token", rows="lda", proxies=count)
    return replace(federation, charter=federation.charter.model_copy(update={"routing": rules}))


@pytest.fixture
def federation(federation: Federation) -> Federation:
    """As for all tests here, but the charter asks every owner for some proxies."""
    return asking(federation, ASKED)


@pytest.fixture
def agreed(make_home: MakeHome, template: Path) -> OwnerHome:
    """The home of an owner who names proxies."""
    made = make_home(contribution={"proxies": True})
    if not template.exists():
        return made
    shutil.rmtree(made.path)  # whose key is another's than the template's
    shutil.copytree(template, made.path, symlinks=True)
    return OwnerHome.load(made.path)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first home that packed is copied to."""
    return tmp_path_factory.mktemp("template") / "home"


@pytest.fixture
def packed(agreed: OwnerHome, template: Path) -> Packed:
    """What that home has packed: made once, since it takes seconds, and put into the home of each test."""
    if not template.exists():
        packed_of(agreed)
        shutil.copytree(agreed.path, template, symlinks=True)
    return find_packed(agreed)


def test_who_agrees_names_public_training_documents(agreed: OwnerHome, packed: Packed) -> None:
    named = packed.contribution.proxies
    public = load_public(agreed.public_text)
    assert len(named) == ASKED
    assert list(named) == sorted(set(named))
    assert set(named) <= {document_id(text) for text in public.train}
    assert packed.signed.open(Contribution, by=agreed.key.public).proxies == named


def test_an_owner_who_says_nothing_names_nothing(make_home: MakeHome) -> None:
    home = make_home()
    packed = packed_of(home)
    assert wanted_proxies(home) == 0
    assert packed.contribution.proxies == ()
    assert "proxies" not in packed.signed.payload
    assert not (packed.folder / PROXIES_NAME).exists()
    assert not any("prox" in line or "evidence" in line for line in describe(packed, home))


def test_a_charter_that_asks_for_none_gets_none(agreed: OwnerHome, federation: Federation) -> None:
    assert wanted_proxies(replace(agreed, charter=asking(federation, 0).charter)) == 0


def test_the_owner_sees_every_id_with_its_score_before_it_leaves(agreed: OwnerHome, packed: Packed) -> None:
    lines = describe(packed, agreed)
    start = next(number for number, line in enumerate(lines) if line.startswith("proxies"))
    shown = [line.split() for line in lines[start + 3 :]]
    assert sorted(words[0] for words in shown) == list(packed.contribution.proxies)
    assert all(float(words[1]) == pytest.approx(0, abs=50) and words[2] == "country" for words in shown)
    (packed.folder / PROXIES_NAME).unlink()
    assert {f"  {each}" for each in packed.contribution.proxies} <= set(describe(packed, agreed))


def test_the_dry_run_shows_them_and_sends_nothing(agreed: OwnerHome, packed: Packed) -> None:
    result = CliRunner().invoke(build(), ["contribute", "--dry-run", "--dir", str(agreed.path)])
    assert result.exit_code == 0, result.output
    assert all(each in result.stdout for each in packed.contribution.proxies)
    assert result.stdout.splitlines()[-1] == "nothing was sent"
    assert not packed.receipt.exists()


def test_what_a_file_carries_is_the_ids_alone(agreed: OwnerHome, packed: Packed, tmp_path) -> None:
    path = export(packed, tmp_path / "medicine.motet")
    signed, _ = read_container(path, tmp_path)
    assert signed.open(Contribution).proxies == packed.contribution.proxies
    assert b"country" not in path.read_bytes(), "no first words"


@pytest.mark.parametrize("consent", ["ask", "automatic"])
def test_the_state_of_a_job_never_tells_them(make_home: MakeHome, consent: str) -> None:
    home = make_home(contribution={"proxies": True, "consent": consent, "transport": "file"})
    spool, request = Spool(home.path), TrainRequest(charter=home.charter.digest)
    spool.submit("train", request)
    run_worker(home.path, once=True)
    told = [path.read_text() for path in (home.path / "spool").rglob("*.json")]
    named = find_packed(home).contribution.proxies
    assert len(named) == ASKED
    assert told
    assert not any(each.removeprefix("sha256:") in text for each in named for text in told)


@pytest.fixture
def without_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)


def test_who_lacks_the_extra_is_told_before_training(make_home: MakeHome, without_classifier: None) -> None:
    home = make_home(contribution={"proxies": True})
    before = sorted(home.work.rglob("*"))
    for begin in (make_contribution, lambda home: plan_training(home.path)):
        with pytest.raises(ConfigurationError, match=r"motet\[proxies\].*proxies = false"):
            begin(home)
    assert sorted(home.work.rglob("*")) == before


def test_who_declines_needs_no_extra(make_home: MakeHome, without_classifier: None) -> None:
    assert plan_training(make_home().path).steps == 6


def test_the_list_is_chosen_once_for_a_charter(agreed: OwnerHome, packed: Packed, federation: Federation) -> None:
    assert packed_of(agreed).digest == packed.digest
    lines = "\n".join(json.dumps({"text": text}) for text in sentences(80, seed=5))
    (agreed.path / "own.jsonl").write_text(lines + "\n", encoding="utf-8")
    second = packed_of(agreed)
    assert second.contribution.version == 2
    assert second.contribution.proxies == packed.contribution.proxies
    assert second.proxies_preview() == packed.proxies_preview()


def test_changing_ones_mind_makes_another_version(agreed: OwnerHome, packed: Packed) -> None:
    edit(agreed, "proxies = true", "proxies = false")
    second = packed_of(agreed)
    assert (second.contribution.version, second.contribution.proxies) == (2, ())
    assert second.contribution.update == packed.contribution.update


def test_less_public_text_than_is_asked_for_is_said(agreed: OwnerHome, federation: Federation) -> None:
    home = replace(agreed, charter=asking(federation, 500).charter)
    with pytest.raises(DataError, match="wanted at least 1 and 500"):
        name_proxies(prepare(home), home)


def test_a_filter_asks_for_no_proxies() -> None:
    with pytest.raises(ValueError, match="no router is tuned"):
        RoutingRules(kind="filter", proxies=1)
