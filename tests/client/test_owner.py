"""Homes: what is written, what is verified, and what is refused."""

from pathlib import Path

import pytest

from motet.client.owner import DataConfig, OwnerConfig, OwnerHome
from motet.protocols.contribution import JoinRequest, Terms
from motet.protocols.documents import Strict
from motet.protocols.errors import ConfigurationError, SignatureError
from motet.protocols.signing import Signed, SigningKey, seal


def config_of(coordinator: str, **changes: object) -> OwnerConfig:
    fields = {"name": "medicine", "data": DataConfig(files=("*.jsonl",)), "terms": Terms(licence="MIT")} | changes
    return OwnerConfig(coordinator=coordinator, **fields)


def test_a_home_loads_as_it_was_created(make_home) -> None:
    home = make_home()
    again = OwnerHome.load(home.path)
    assert (again.config, again.charter, again.key.public) == (home.config, home.charter, home.key.public)


def test_private_keys_are_for_the_owner_only(make_home) -> None:
    home = make_home()
    for path in (home.path / "keys" / "owner.pem", home.flower_key):
        assert path.stat().st_mode & 0o077 == 0


def test_the_join_request_binds_the_flower_key(make_home) -> None:
    home = make_home()
    request = Signed.parse(home.join_request().canonical()).open(JoinRequest, by=home.key.public)
    assert request.charter == home.charter.digest
    assert request.flower_key == home.flower_key.with_name("flower.pub").read_text().strip()


def test_joining_twice_is_refused_and_keeps_the_keys(make_home, federation) -> None:
    home = make_home()
    with pytest.raises(ConfigurationError, match="has joined"):
        OwnerHome.create(home.path, home.config, seal(federation.charter, federation.key))
    assert OwnerHome.load(home.path).key.public == home.key.public


def test_a_charter_signed_by_another_key_is_refused(make_home, federation, tmp_path: Path) -> None:
    impostor = SigningKey.generate()
    with pytest.raises(SignatureError, match="wanted"):
        OwnerHome.create(tmp_path / "new", config_of(federation.key.public), seal(federation.charter, impostor))
    assert not (tmp_path / "new" / "owner.toml").exists()


def test_a_charter_altered_at_rest_is_refused(make_home) -> None:
    home = make_home()
    path = home.path / home.config.charter
    path.write_text(path.read_text().replace("public_share", "public_shore"))
    with pytest.raises(SignatureError):
        OwnerHome.load(home.path)


def test_a_missing_charter_is_named(make_home) -> None:
    home = make_home()
    (home.path / home.config.charter).unlink()
    with pytest.raises(ConfigurationError, match=r"charter\.signed\.json"):
        OwnerHome.load(home.path)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ('name = "medicine"', 'name = "medicine"\nspeed = 3', "speed"),
        ("batch_size = 8", "batch_size = 0", "training.batch_size"),
        ('"*.jsonl",', "", "data.files"),
    ],
)
def test_a_bad_key_is_named(federation, tmp_path: Path, old: str, new: str, where: str) -> None:
    text = config_of(federation.key.public).to_toml()
    assert old in text
    (tmp_path / "owner.toml").write_text(text.replace(old, new))
    with pytest.raises(ConfigurationError, match=where):
        OwnerConfig.from_toml(tmp_path / "owner.toml")


def test_configuration_survives_toml(federation, tmp_path: Path) -> None:
    config = config_of(federation.key.public)
    (tmp_path / "owner.toml").write_text(config.to_toml())
    assert OwnerConfig.from_toml(tmp_path / "owner.toml") == config


def test_the_page_names_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "owner.md").read_text(encoding="utf-8")
    for name, field in OwnerConfig.model_fields.items():
        table = field.annotation
        leaves = table.model_fields if isinstance(table, type) and issubclass(table, Strict) else {}
        for leaf in leaves:
            assert f"`{name}.{leaf}`" in page or f"`.{leaf}`" in page, f"{name}.{leaf}"
        assert leaves or f"`{field.alias or name}`" in page, name
