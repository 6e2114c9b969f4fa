"""What documents say of low-rank experts, and that what says nothing of them keeps the bytes it was signed with."""

import json
from datetime import date, datetime

import pytest
from pydantic import ValidationError

from motet.protocols.charter import Addresses, AnchorPin, Charter, ExpertRules
from motet.protocols.codec import METHODS
from motet.protocols.composite_manifest import CompositeManifest, CompositeMember, RoutingPolicy
from motet.protocols.contribution import (
    LOWRANK_METHODS,
    CodecRecord,
    Contribution,
    Terms,
    TrainingRecord,
    require_lowrank_method,
)
from motet.protocols.errors import CodecError
from motet.protocols.signing import SigningKey, seal

ZEROS = "sha256:" + "0" * 64
OWNER = "ed25519:" + "0" * 64


def charter(**rules: object) -> Charter:
    return Charter(
        name="a",
        anchor=AnchorPin(digest=ZEROS, statistics=ZEROS, public_text=ZEROS, bundle=ZEROS),
        experts=ExpertRules(**rules),
        addresses=Addresses(data_plane="localhost:1", flower="localhost:2"),
        coordinator=OWNER,
        certificate_authority="-----BEGIN CERTIFICATE-----",
    )


def contribution(**changes: object) -> Contribution:
    training = TrainingRecord(steps=1, tokens=1, documents=1, held_out_documents=1, seed=0, public_share=0)
    fixed = {"charter": ZEROS, "anchor": ZEROS, "name": "a", "owner": OWNER, "update": ZEROS, "update_bytes": 1}
    parts = {"terms": Terms(licence="CC0-1.0"), "training": training, "codec": CodecRecord(method="int8")}
    return Contribution(**(fixed | parts | {"bits_per_byte": {}} | changes))


def test_charters_that_were_signed_before_keep_their_digests() -> None:
    told = charter(kinds=("full",)).as_json()
    assert told["experts"].keys() == {"kinds", "max_update_bytes", "inline_bytes", "licences"}
    assert Charter.parse(json.dumps(told).encode()).digest == charter(kinds=("full",)).digest
    assert charter().as_json()["experts"]["max_rank"] == 64
    assert charter().experts.kinds == ("full", "lowrank")
    assert "try_before_joining" not in charter().as_json()["experts"]
    opened = charter(try_before_joining=True)
    assert opened.as_json()["experts"]["try_before_joining"] is True
    assert Charter.parse(opened.canonical()) == opened
    limited = charter(kinds=("full",), max_rank=8)
    assert Charter.parse(limited.canonical()) == limited


def test_contributions_say_their_rank_only_when_they_have_one() -> None:
    assert "rank" not in contribution().as_json()
    signed = contribution(kind="lowrank", rank=16)
    assert (signed.as_json()["kind"], signed.as_json()["rank"]) == ("lowrank", 16)
    assert Contribution.parse(signed.canonical()) == signed


@pytest.mark.parametrize(
    ("given", "kept", "seconds"),
    [
        ("2027-01-31", "2027-01-31T00:00:00Z", 1801353600),
        ("2027-01-31T01:30:00+01:30", "2027-01-31T00:00:00Z", 1801353600),
        (date(2027, 1, 31), "2027-01-31T00:00:00Z", 1801353600),
        (datetime(2027, 1, 31, 0, 0, 1, 999999), "2027-01-31T00:00:01Z", 1801353601),
        ("0999-01-01", "0999-01-01T00:00:00Z", -30641760000),
    ],
)
def test_an_expiry_has_one_form_whatever_it_was_written_as(given: object, kept: str, seconds: int) -> None:
    terms = Terms.model_validate({"licence": "CC0-1.0", "expiry": given})
    assert (terms.expiry, terms.expires_at) == (kept, seconds)
    signed = contribution(terms=terms)
    assert Contribution.parse(signed.canonical()) == signed
    assert str(terms) == f"CC0-1.0; attribution: none; purpose: any that the licence allows; until {kept}"


@pytest.mark.parametrize("given", ["soon", "2027-13-01", "0001-01-01T00:00:00+01:00", 5, True, ["2027-01-31"], ""])
def test_what_is_no_time_is_no_expiry(given: object) -> None:
    with pytest.raises(ValidationError, match="expiry"):
        Terms.model_validate({"licence": "CC0-1.0", "expiry": given})


def test_terms_without_expiry_keep_the_bytes_that_were_signed_before() -> None:
    plain = contribution()
    assert plain.as_json()["terms"].keys() == {"licence", "attribution", "purpose"}
    assert plain.terms.expires_at is None
    signed = seal(plain, SigningKey.generate())
    assert signed.open(Contribution) == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "lowrank"}, "saw kind 'lowrank' with rank None"),
        ({"rank": 4}, "saw kind 'full' with rank 4"),
        ({"kind": "lowrank", "rank": 0}, "rank"),
        ({"kind": "lowrank", "rank": 1 << 15}, "rank"),
        ({"kind": "lowrank", "rank": 4, "base": ZEROS}, "saw a low-rank expert with base"),
        ({"kind": "dora", "rank": 4}, "kind"),
    ],
)
def test_kind_rank_and_base_belong_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        contribution(**changes)


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_leave_values_out_are_no_low_rank_experts(method: str) -> None:
    if method in LOWRANK_METHODS:
        require_lowrank_method(method)
    else:
        with pytest.raises(CodecError, match=f"saw the method {method} for a low-rank expert"):
            require_lowrank_method(method)


def test_a_composite_says_ranks_only_of_low_rank_members() -> None:
    ones = "sha256:" + "1" * 64
    members = (
        CompositeMember(name="a", contribution=ZEROS, expert=ZEROS),
        CompositeMember(name="b", contribution=ones, expert=ZEROS, rank=4),
    )
    manifest = CompositeManifest(anchor=ZEROS, members=members, routing=RoutingPolicy(), files=())
    told = manifest.as_json()["members"]
    assert told[0].keys() == {"name", "contribution", "expert"}
    assert told[1]["rank"] == 4
    assert CompositeManifest.parse(manifest.canonical()) == manifest
