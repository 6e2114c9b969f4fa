"""The policy, the experts' own terms, and keys: decisions and files, without a server."""

import json
import stat
from pathlib import Path

import pytest

from motet.protocols.canonical import bytes_digest
from motet.protocols.contribution import Terms
from motet.protocols.errors import ConfigurationError
from motet.serving.policy.keys import Keyring, make_key, read_keys, revoke_key
from motet.serving.policy.rules import EVERYBODY, Policy, Tenant, obstacle, usable

TERMS = {
    "art": Terms(licence="CC-BY-NC-4.0"),
    "law": Terms(licence="CC0-1.0", purpose="Research only"),
    "math": Terms(licence="CC0-1.0"),
    "news": None,
}


@pytest.mark.parametrize(
    ("tenant", "names"),
    [
        (EVERYBODY, {"art", "math", "news"}),  # nothing is said of research
        (Tenant(purposes=("research  ONLY",)), {"art", "law", "math", "news"}),
        (Tenant(allowed=("law", "math")), {"math"}),  # no policy allows what the terms do not
        (Tenant(allowed=("law", "math"), purposes=("Research only",)), {"law", "math"}),
        (Tenant(allowed=("art", "math"), denied=("math",)), {"art"}),
        (Tenant(allowed=()), set()),
        (Tenant(licences=("CC0-1.0",)), {"math", "news"}),
        (Tenant(licences=()), {"news"}),
    ],
)
def test_terms_and_policy_must_both_allow(tenant: Tenant, names: set[str]) -> None:
    assert usable(tenant, TERMS) == names


def test_whoever_may_not_is_told_why() -> None:
    assert "lent for 'Research only'" in obstacle(EVERYBODY, "law", TERMS["law"])
    assert "CC-BY-NC-4.0" in obstacle(Tenant(licences=("CC0-1.0",)), "art", TERMS["art"])
    assert "denied" in obstacle(Tenant(denied=("news",)), "news", None)
    assert "not among" in obstacle(Tenant(allowed=()), "news", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "tenants"),
        ("[tenants]", "tenants"),
        ("[tenants.clinic]\nallow = []", "tenants.clinic.allow"),
        ("[tenants.Clinic]", "tenants"),
        ("without_key = 'guest'\n[tenants.clinic]", "without_key, tenants: saw the tenant 'guest'"),
        ("[tenants.clinic]\nallowed = ['../law']", "tenants.clinic.allowed"),
        ("[tenants.clinic", "TOML"),
        ("keyfile = 'x'\n[tenants.clinic]", "keyfile"),
    ],
)
def test_a_policy_that_cannot_be_used_names_the_key(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        Policy.from_toml(tmp_path / "policy.toml")
    assert said in str(caught.value)


def test_a_denied_name_that_nobody_has_is_an_error() -> None:
    policy = Policy(tenants={"clinic": Tenant(denied=("laws",))})
    with pytest.raises(ConfigurationError, match=r"tenants\.clinic\.denied: saw laws.*art, law"):
        policy.require_known(("art", "law"))
    Policy(tenants={"clinic": Tenant(denied=("law",), allowed=("art",))}).require_known(("art", "law"))


def test_keys_are_kept_as_hashes_and_told_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    secret = make_key(path, tenant="clinic", note="ward")
    other = make_key(path, tenant="school")
    assert secret != other
    assert secret.removeprefix("motet-") not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = read_keys(path).keys
    assert [(each.tenant, each.note) for each in kept] == [("clinic", "ward"), ("school", "")]
    assert kept[0].hash == bytes_digest(secret.encode())


def test_a_running_keyring_learns_of_new_keys_and_of_revoked_ones(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    ring = Keyring(path)
    secret = make_key(path, tenant="clinic")
    assert ring.tenant_of(secret) == "clinic"
    assert ring.tenant_of(secret + "x") is None
    assert ring.tenant_of("") is None
    assert ring.tenant_of("\udcff") is None
    gone = revoke_key(path, read_keys(path).keys[0].id)
    assert gone.tenant == "clinic"
    assert ring.tenant_of(secret) is None


def test_revoking_needs_a_key_that_is_there(tmp_path: Path) -> None:
    make_key(tmp_path / "keys.json", tenant="clinic")
    with pytest.raises(ConfigurationError, match="saw the key 123, wanted the id of one"):
        revoke_key(tmp_path / "keys.json", "123")
    with pytest.raises(ConfigurationError, match="no folder"):
        revoke_key(tmp_path / "none" / "keys.json", "123")


@pytest.mark.parametrize("content", [b"", b"{}x", b"[]", json.dumps({"keys": [{"hash": "x"}]}).encode(), b"\xff"])
def test_a_damaged_key_file_lets_nobody_in(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"keys\.json"):
        Keyring(path)
