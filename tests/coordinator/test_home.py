"""Making, opening and damaging a coordinator's home; enrolling owners."""

import base64
import json
import shutil
import stat
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from motet.coordinator.founding import init
from motet.coordinator.home import CoordinatorHome
from motet.protocols.charter import Addresses, Charter, RoutingRules
from motet.protocols.errors import (
    AdmissionRefused,
    AnchorError,
    ConfigurationError,
    DocumentError,
    LedgerError,
    MotetError,
    SignatureError,
    StatisticsError,
)
from motet.protocols.signing import Signed, SigningKey, seal
from motet.protocols.transfer.publication import Listing

ADDRESSES = Addresses(data_plane="127.0.0.1:9443", flower="localhost:8000")


def test_a_new_home_holds_together(home: CoordinatorHome, public_text: Path) -> None:
    assert home.charter.name == "quickstart"
    assert home.charter.coordinator == home.key.public
    assert home.anchor.digest == home.anchor_manifest.digest == home.charter.anchor.digest
    first = home.ledger.entries()
    assert [entry.kind for entry in first] == ["charter"]
    assert Signed.model_validate(first[0].body["signed"]).open(Charter) == home.charter
    assert home.charter.certificate_authority == home.tls().authority.read_text()
    assert stat.S_IMODE((home.path / "keys" / "coordinator.pem").stat().st_mode) == 0o600


def test_the_bundle_lists_everything_an_owner_needs(home: CoordinatorHome) -> None:
    listing = Listing.of((home.anchor_directory / "bundle.json").read_bytes(), home.charter.anchor.bundle)
    assert set(listing.files) == {path.name for path in home.anchor_directory.iterdir()} - {"bundle.json"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "statistics.safetensors"} < set(listing.files)
    assert listing.files["public.jsonl"].sha256 == home.charter.anchor.public_text
    assert listing.files["statistics.safetensors"].sha256 == home.charter.anchor.statistics


def test_opening_a_home_imports_no_torch(home: CoordinatorHome) -> None:
    """The data plane's memory is not to be spent on a library that it does not need."""
    script = (
        "import sys; from pathlib import Path; from motet.coordinator.home import CoordinatorHome\n"
        "home = CoordinatorHome(Path(sys.argv[1])); home.ledger.standing(); home.close()\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, home.path], check=True)


def test_a_home_is_never_made_over_something(tmp_path: Path, anchor_with_statistics: Path, public_text: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        init(
            tmp_path / "home",
            name="x",
            anchor_directory=anchor_with_statistics,
            public_text=public_text,
            addresses=ADDRESSES,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_federation_has_a_plain_name(tmp_path: Path, anchor_with_statistics: Path, public_text: Path) -> None:
    with pytest.raises(ConfigurationError, match="use small letters"):
        init(
            tmp_path / "home",
            name="My Federation",
            anchor_directory=anchor_with_statistics,
            public_text=public_text,
            addresses=ADDRESSES,
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "proxies", "counted"), [("filter", 0, True), ("token", 0, True), ("token", 2, False)])
def test_public_tokens_are_counted_where_evidence_is(
    tmp_path: Path, anchor_with_statistics: Path, public_text: Path, kind: str, proxies: int, counted: bool
) -> None:
    charter = init(
        tmp_path / "home",
        name="x",
        anchor_directory=anchor_with_statistics,
        public_text=public_text,
        addresses=ADDRESSES,
        routing=RoutingRules(kind=kind, proxies=proxies),
    )
    assert charter.routing.counted == counted
    assert (tmp_path / "home" / "public-tokens.npy").exists() == counted


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda anchor, text: (anchor / "model.safetensors").unlink(), AnchorError),
        (lambda anchor, text: (anchor / "config.json").write_text('{"model_type": "gpt2"}'), AnchorError),
        (lambda anchor, text: (anchor / "statistics.safetensors").write_bytes(b"x"), StatisticsError),
        (lambda anchor, text: text.write_text("not json\n"), ConfigurationError),
        (lambda anchor, text: text.write_text('{"text": 5}\n'), ConfigurationError),
        (lambda anchor, text: text.write_text('{"text": "alone"}\n'), ConfigurationError),
        (lambda anchor, text: text.unlink(), ConfigurationError),
    ],
    ids=["no-model", "unsupported", "bad-statistics", "no-json", "no-text", "too-little", "no-file"],
)
def test_a_bad_anchor_or_text_leaves_nothing_behind(
    spoil: Callable[[Path, Path], object],
    error: type[MotetError],
    tmp_path: Path,
    anchor_with_statistics: Path,
    public_text: Path,
) -> None:
    anchor, text = tmp_path / "in" / "anchor", tmp_path / "in" / "public.jsonl"
    shutil.copytree(anchor_with_statistics, anchor)
    shutil.copyfile(public_text, text)
    spoil(anchor, text)
    with pytest.raises(error):
        init(tmp_path / "home", name="x", anchor_directory=anchor, public_text=text, addresses=ADDRESSES)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_signed_charter_holds(home: CoordinatorHome) -> None:
    readable = home.path / "charter.toml"
    before = readable.read_text()
    readable.write_text("# a comment does no harm\n" + before)
    assert CoordinatorHome(home.path).charter == home.charter
    readable.write_text(before.replace("public_share = 0.25", "public_share = 0.5"))
    with pytest.raises(ConfigurationError, match="differs from the signed charter"):
        CoordinatorHome(home.path)


def test_a_changed_signed_charter_is_refused(home: CoordinatorHome) -> None:
    path = home.path / "charter.signed.json"
    document = json.loads(path.read_bytes())
    document["payload"] = document["payload"].replace("quickstart", "slowstart")
    path.write_text(json.dumps(document))
    with pytest.raises(SignatureError):
        CoordinatorHome(home.path)


def test_another_coordinators_key_is_refused(home: CoordinatorHome) -> None:
    key = home.path / "keys" / "coordinator.pem"
    key.unlink()
    SigningKey.generate().save(key)
    with pytest.raises(ConfigurationError, match="restore the key"):
        CoordinatorHome(home.path)


def test_another_federations_ledger_is_refused(home: CoordinatorHome) -> None:
    other = SigningKey.generate()
    charter = home.charter.model_copy(update={"coordinator": other.public})
    for name, data in (
        ("charter.toml", charter.to_toml().encode()),
        ("charter.signed.json", seal(charter, other).canonical()),
    ):
        (home.path / name).write_bytes(data)
    (home.path / "keys" / "coordinator.pem").unlink()
    other.save(home.path / "keys" / "coordinator.pem")
    with pytest.raises(ConfigurationError, match="different federations"):
        _ = CoordinatorHome(home.path).ledger


def test_no_home_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="motet init"):
        CoordinatorHome(tmp_path)


def test_enrolling_twice_changes_nothing(home: CoordinatorHome, make_owner: Callable[..., object]) -> None:
    owner = make_owner("medicine")
    entry = home.enrol(owner.request(home))
    assert home.enrol(owner.request(home)) == entry
    assert list(home.ledger.standing().owners) == [owner.key.public]


def respelt(line: str) -> str:
    """The same key in other letters: base64 has bits to spare before its padding."""
    kind, encoded = line.split()[:2]
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    last = encoded.rstrip("=")[-1]
    other = encoded.rstrip("=")[:-1] + alphabet[alphabet.index(last) ^ 1] + "=" * encoded.count("=")
    assert other != encoded
    assert base64.b64decode(other) == base64.b64decode(encoded)
    return f"{kind} {other}"


def test_who_may_not_enrol(home: CoordinatorHome, make_owner: Callable[..., object]) -> None:
    owner, stranger = make_owner("medicine"), make_owner("law")
    home.enrol(owner.request(home))
    refused = {
        "name-taken": stranger.request(home, name="medicine"),
        "flower-key-taken": stranger.request(home, flower_key=respelt(owner.flower_key) + " a comment"),
        "wrong-charter": stranger.request(home, charter="sha256:" + "0" * 64),
        "already-enrolled": owner.request(home, name="surgery"),
    }
    for reason, request in refused.items():
        with pytest.raises(AdmissionRefused) as caught:
            home.enrol(request)
        assert caught.value.reason == reason
    assert len(home.ledger.entries()) == 2


def test_a_join_request_must_be_its_owners_and_its_flower_key_one(
    home: CoordinatorHome, make_owner: Callable[..., object]
) -> None:
    owner, other = make_owner("medicine"), make_owner("law")
    with pytest.raises(SignatureError):
        home.enrol(owner.request(home, owner=other.key.public))
    for line in ("ssh-ed25519 AAAA", "nonsense", ""):
        with pytest.raises(DocumentError, match="Flower key"):
            home.enrol(owner.request(home, flower_key=line))


def test_a_cut_ledger_does_not_open(home: CoordinatorHome) -> None:
    home.close()
    for path in home.path.glob("ledger.sqlite*"):
        if path.suffix != ".head":
            path.unlink()
    with pytest.raises(LedgerError, match="cut or replaced"):
        _ = CoordinatorHome(home.path).ledger
