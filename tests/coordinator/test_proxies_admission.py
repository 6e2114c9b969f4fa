"""Which public documents a contribution may name, and that contributions without any are what they always were."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from motet.coordinator.admission import examine_manifest
from motet.coordinator.home import PUBLIC_TEXT_FILE, CoordinatorHome
from motet.coordinator.intake import Intake
from motet.coordinator.public_text import PublicText
from motet.protocols.canonical import canonical_json
from motet.protocols.charter import Charter, RoutingRules
from motet.protocols.contribution import Contribution
from motet.protocols.errors import AdmissionRefused
from motet.protocols.signing import Signed, purpose_of
from motet.protocols.split import document_id

ZEROS = "sha256:" + "0" * 64


@pytest.fixture
def public(home: CoordinatorHome) -> PublicText:
    return PublicText(home.anchor_directory / PUBLIC_TEXT_FILE)


@pytest.fixture
def ids(public: PublicText) -> list[str]:
    return sorted(public.train_ids())


@pytest.fixture
def examine(
    home: CoordinatorHome, medicine: object, public: PublicText, write_update: Callable[..., Path], tmp_path: Path
) -> Callable[..., Contribution]:
    """`examine(proxies, asked=4)`: what becomes of a manifest that names these under a charter that asks for some."""
    update = write_update(tmp_path / "update.motetup")

    def judge(proxies: list[str], *, asked: int = 4) -> Contribution:
        charter = asking(home.charter, asked)
        signed = medicine.manifest(home, update, charter=charter.digest, proxies=tuple(proxies))
        return examine_manifest(signed, home.ledger.standing(), charter, public=public.train_ids())

    return judge


def asking(charter: Charter, count: int) -> Charter:
    return charter.model_copy(update={"routing": RoutingRules(kind="token", proxies=count)})


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(AdmissionRefused) as caught:
        call()
    assert str(caught.value).startswith(f"refused ({caught.value.reason}): ")
    return caught.value.reason


def test_public_training_documents_may_be_named(examine: Callable[..., Contribution], ids: list[str]) -> None:
    assert examine(ids[:4]).proxies == tuple(ids[:4])
    assert examine(ids[:1]).proxies == tuple(ids[:1])
    assert examine([]).proxies == ()


def test_what_may_not_be_named(examine: Callable[..., Contribution], ids: list[str], public: PublicText) -> None:
    held_out = document_id(public.held_out()[0])
    for proxies, reason in (
        (ids[:5], "too-many-proxies"),
        (ids[:2][::-1], "unsorted-proxies"),
        ([ids[0], ids[0]], "unsorted-proxies"),
        ([ZEROS], "unknown-proxy"),
        (sorted([ids[0], held_out]), "unknown-proxy"),
    ):
        assert reason_of(lambda: examine(proxies)) == reason  # noqa: B023
    assert reason_of(lambda: examine(ids[:1], asked=0)) == "too-many-proxies"


def test_without_the_public_text_no_id_is_known(
    home: CoordinatorHome, medicine: object, write_update: Callable[..., Path], tmp_path: Path, ids: list[str]
) -> None:
    charter = asking(home.charter, 4)
    update = write_update(tmp_path / "u")
    signed = medicine.manifest(home, update, charter=charter.digest, proxies=(ids[0],))
    assert reason_of(lambda: examine_manifest(signed, home.ledger.standing(), charter)) == "unknown-proxy"


def test_the_intake_knows_the_public_text_of_its_home(
    home: CoordinatorHome, medicine: object, write_update: Callable[..., Path], tmp_path: Path, ids: list[str]
) -> None:
    home.charter = asking(home.charter, 4)
    intake, update = Intake(home), write_update(tmp_path / "u")
    good, bad = (medicine.manifest(home, update, proxies=proxies) for proxies in ((ids[0],), (ZEROS,)))
    assert intake.check(good.open(Contribution), good) is None
    assert reason_of(lambda: intake.check(bad.open(Contribution), bad)) == "unknown-proxy"
    (refused,) = [entry for entry in home.ledger.entries() if entry.kind == "refused"]
    assert refused.body["reason"] == "unknown-proxy"


def test_a_contribution_without_proxies_is_the_one_that_releases_before_them_signed(
    home: CoordinatorHome, medicine: object, write_update: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = medicine.manifest(home, write_update(tmp_path / "u")).open(Contribution)
    older = manifest.model_dump(mode="json", by_alias=True)
    del older["proxies"], older["rank"], older["terms"]["expiry"]
    payload = canonical_json(older)
    purpose = purpose_of(Contribution)
    signature = medicine.key.sign(purpose, payload)
    signed = Signed(purpose=purpose, payload=payload.decode(), key=medicine.key.public, signature=signature)
    assert examine_manifest(signed, home.ledger.standing(), home.charter) == manifest
    assert manifest.canonical() == payload


def test_both_sides_of_the_public_text_and_what_is_named_of_it(public: PublicText, ids: list[str]) -> None:
    train, held_out = public.train(), public.held_out()
    assert len(train) + len(held_out) == 60
    assert not set(train) & set(held_out)
    assert public.named([ids[3], ZEROS, ids[1]]) == {
        each: next(text for text in train if document_id(text) == each) for each in (ids[1], ids[3])
    }
    blanks = public.path.read_text() + '\n{"text": " "}\n'
    public.path.write_text(blanks)
    assert dataclasses.replace(public).train() == train
