"""The two keys, in the formats that Flower's own commands read."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from motet.client.keys import flower_public_key, owner_key
from motet.protocols.errors import ConfigurationError


def test_flower_reads_both_halves(tmp_path: Path) -> None:
    line = flower_public_key(tmp_path / "keys" / "flower")
    private = load_ssh_private_key((tmp_path / "keys" / "flower").read_bytes(), password=None)
    public = load_ssh_public_key((tmp_path / "keys" / "flower.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP384R1)
    assert private.public_key() == public == load_ssh_public_key(line.encode())


def test_keys_are_made_once(tmp_path: Path) -> None:
    assert flower_public_key(tmp_path / "flower") == flower_public_key(tmp_path / "flower")
    assert owner_key(tmp_path / "owner.pem").public == owner_key(tmp_path / "owner.pem").public


def test_a_lost_public_half_is_made_again(tmp_path: Path) -> None:
    line = flower_public_key(tmp_path / "flower")
    (tmp_path / "flower.pub").unlink()
    assert flower_public_key(tmp_path / "flower") == line
    assert (tmp_path / "flower.pub").read_text() == line + "\n"


def test_a_damaged_key_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "flower").write_text("not a key")
    with pytest.raises(ConfigurationError, match="flower"):
        flower_public_key(tmp_path / "flower")
    assert (tmp_path / "flower").read_text() == "not a key"
