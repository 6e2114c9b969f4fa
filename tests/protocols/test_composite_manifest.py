"""A composite's manifest is canonical and refuses what no composite can be."""

import pytest

from motet.protocols.charter import RoutingRules
from motet.protocols.composite_manifest import CompositeManifest, RoutingPolicy
from motet.protocols.documents import Document
from motet.protocols.errors import DocumentError


def digest(digit: str) -> str:
    return "sha256:" + digit * 64


def member(name: str, digit: str) -> dict[str, str]:
    return {"name": name, "contribution": digest(digit), "expert": digest("f")}


def file(name: str) -> dict[str, object]:
    return {"name": name, "size": 3, "sha256": digest("e")}


def manifest(**changes: object) -> CompositeManifest:
    members, files = [member("code", "1"), member("medicine", "2")], [file("config.json"), file("shared.safetensors")]
    content = {"anchor": digest("0"), "members": members, "routing": {}, "files": files} | changes
    return CompositeManifest.parse(
        CompositeManifest.model_construct(**content).model_dump_json(warnings=False).encode()
    )


def test_survives_a_round_trip():
    one = manifest()

    assert isinstance(one, Document)
    assert CompositeManifest.parse(one.canonical()) == one
    assert one.digest != manifest(anchor=digest("1")).digest


def test_takes_its_policy_from_the_charter():
    rules = RoutingRules(top_k=2, normalise_top_k=False, log_prior_anchor=1.5)

    wanted = {"kind": "filter", "top_k": 2, "normalise_top_k": False, "log_prior_anchor": 1.5}
    assert RoutingPolicy.of(rules) == RoutingPolicy(**wanted)
    by_token = RoutingPolicy.of(RoutingRules(kind="token", stay=0.5, gain=4.0))
    assert (by_token.kind, by_token.gain, by_token.counted) == ("token", None, False)
    average = RoutingPolicy.of(RoutingRules(kind="token", rows="average", gain=4.0))
    assert (average.kind, average.gain, average.counted) == ("token", 4.0, True)


def test_without_an_average_it_is_the_bytes_of_earlier_releases():
    assert RoutingPolicy.of(RoutingRules()).counted
    assert manifest(routing={"kind": "filter"}).as_json()["routing"].keys() == {
        *("kind", "stay", "temperature", "top_k", "normalise_top_k", "log_prior_anchor", "log_prior_expert")
    }
    average = manifest(routing={"gain": 4.0})
    assert average.as_json()["routing"]["gain"] == 4.0
    assert CompositeManifest.parse(average.canonical()) == average


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": [member("code", "2"), member("medicine", "1")]}, "out of order"),
        ({"members": [member("code", "1"), member("medicine", "1")]}, "repeated"),
        ({"members": [member("code", "1"), member("code", "2")]}, "a name twice"),
        ({"members": [member("anchor", "1")]}, "expert 0 is the anchor"),
        ({"files": [file("../../etc/passwd")]}, "pattern"),
        ({"files": [file("a"), file("a")]}, "repeated"),
        ({"files": [file("composite.json")]}, r"composite\.json"),
        ({"files": [file(".hidden")]}, "pattern"),
    ],
)
def test_refuses_what_no_composite_can_be(changes, message):
    with pytest.raises(DocumentError, match=message):
        manifest(**changes)
