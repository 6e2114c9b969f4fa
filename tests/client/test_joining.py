"""Joining: a home that works, or a clear error and nothing left behind."""

from pathlib import Path

import pytest

from motet.client.joining import join
from motet.client.owner import OwnerHome
from motet.protocols.charter import ExpertRules
from motet.protocols.contribution import JoinRequest
from motet.protocols.errors import ConfigurationError, SignatureError
from motet.protocols.signing import Signed, SigningKey, seal


@pytest.fixture
def charter_file(federation, tmp_path: Path) -> Path:
    path = tmp_path / "charter.signed.json"
    path.write_bytes(seal(federation.charter, federation.key).canonical())
    return path


def join_as(charter_file: Path, home: Path, **changes: object):
    wishes = {"name": "medicine", "files": ("notes/*.txt",), "terms": {"licence": "CC0-1.0", "purpose": None}}
    return join(charter_file, home, **(wishes | {"confirm": lambda question: True} | changes))


def test_joining_makes_a_home_and_a_request_that_binds_both_keys(
    charter_file: Path, federation, tmp_path: Path
) -> None:
    joined = join_as(charter_file, tmp_path / "owner", settings=("training.steps=7", "training.device=cpu"))
    home = OwnerHome.load(tmp_path / "owner")
    assert (home.config.training.steps, home.config.training.device) == (7, "cpu")
    assert home.config.data.files == (str(Path("notes/*.txt").absolute()),)
    assert home.config.coordinator == federation.key.public
    request = Signed.parse(joined.request.read_bytes()).open(JoinRequest, by=joined.owner)
    assert request.flower_key == (home.path / "keys" / "flower.pub").read_text().strip()
    assert (request.charter, request.name) == (joined.charter, "medicine")
    for key in ("owner.pem", "flower"):
        assert (home.path / "keys" / key).stat().st_mode & 0o077 == 0


def test_a_tilde_in_a_quoted_pattern_is_the_home_directory(charter_file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    join_as(charter_file, tmp_path / "owner", files=("~/notes/*.txt",))
    assert OwnerHome.load(tmp_path / "owner").config.data.files == ("/home/somebody/notes/*.txt",)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"name": "Medicine"}, "name: String should match pattern"),
        ({"name": "anchor"}, "'anchor' names a row"),
        ({"name": "average"}, "'average' names a row"),
        ({"settings": ("steps=7",)}, "section.key=value"),
        ({"settings": ("training.steps",)}, "section.key=value"),
        ({"settings": ("name.x=7",)}, "section.key=value"),
        ({"settings": ("training.steps=many",)}, "training.steps: Input should be a valid integer"),
        ({"settings": ("training.stesp=7",)}, "training.stesp: Extra inputs are not permitted"),
        ({"files": ()}, "data.files"),
        ({"confirm": lambda question: False}, "--coordinator KEY"),
    ],
)
def test_what_cannot_be_is_named_and_leaves_nothing(
    charter_file: Path, tmp_path: Path, changes: dict[str, object], wanted: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        join_as(charter_file, tmp_path / "owner", **changes)
    assert wanted in str(caught.value)
    assert not (tmp_path / "owner").exists()


def test_a_licence_that_the_charter_refuses_is_told_at_once(federation, tmp_path: Path) -> None:
    strict = federation.charter.model_copy(update={"experts": ExpertRules(licences=("MIT",))})
    path = tmp_path / "charter.signed.json"
    path.write_bytes(seal(strict, federation.key).canonical())
    with pytest.raises(ConfigurationError, match=r"'CC0-1.0', wanted one that the charter accepts: MIT"):
        join_as(path, tmp_path / "owner")


def test_the_key_that_was_named_must_have_signed(charter_file: Path, federation, tmp_path: Path) -> None:
    with pytest.raises(SignatureError):
        join_as(charter_file, tmp_path / "owner", coordinator=SigningKey.generate().public)
    asked = list[str]()
    join_as(charter_file, tmp_path / "owner", coordinator=federation.key.public, confirm=asked.append)
    assert asked == []


def test_a_home_joins_once(charter_file: Path, tmp_path: Path) -> None:
    owner = join_as(charter_file, tmp_path / "owner").owner
    with pytest.raises(ConfigurationError, match="has joined"):
        join_as(charter_file, tmp_path / "owner")
    assert OwnerHome.load(tmp_path / "owner").key.public == owner


def test_a_charter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the charter .*nowhere.json"):
        join_as(tmp_path / "nowhere.json", tmp_path / "owner")
