"""The charter: what its routing rules refuse, and the page that names its keys."""

import json
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from motet.protocols.charter import Charter, RoutingRules
from motet.protocols.documents import Strict

DIGEST = "sha256:" + "0" * 64
SIGNED = (
    '{"addresses":{"data_plane":"localhost:1","flower":"localhost:2"},"anchor":{"bundle":"sha256:ZEROS","digest":"sha256'
    ':ZEROS","public_text":"sha256:ZEROS","statistics":"sha256:ZEROS"},"certificate_authority":"-----BEGIN CERTIFICATE-'
    '----","codec":{"density":0.2,"methods":["ternary","levels","int8","int4","lossless","raw"]},"coordinator":"ed25519'
    ':ZEROS","experts":{"inline_bytes":33554432,"kinds":["full"],"licences":[],"max_update_bytes":68719476736},"name":"'
    'a","routing":{"embedder":null,"kind":"KIND","log_prior_anchor":1.0,"log_prior_expert":0.0,"normalise_top_k":true,"'
    'projection_seed":0,"proxies":0,"rows":"ROWS","stay":0.99,"temperature":4.0,"top_k":null},"schema":"motet.charter/1'
    '","training":{"public_share":0.25}}'
).replace("ZEROS", "0" * 64)
"""The bytes of charters as they were before there were low-rank experts and averages."""


def test_the_page_names_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "charter.md").read_text(encoding="utf-8")
    for name, field in Charter.model_fields.items():
        table = field.annotation
        leaves = table.model_fields if isinstance(table, type) and issubclass(table, Strict) else {}
        for leaf in leaves:
            assert f"`{name}.{leaf}`" in page, f"{name}.{leaf}"
        assert leaves or f"`{field.alias or name}`" in page, name


def test_the_page_names_the_defaults_of_routing() -> None:
    page = (Path(__file__).parents[2] / "docs" / "charter.md").read_text(encoding="utf-8")
    lines = {
        line.split("|")[1].strip(" `"): line.split("|")[2].strip(" `") for line in page.splitlines() if "|" in line
    }
    for name, value in RoutingRules().model_dump(mode="json").items():
        assert value is None or lines[f"routing.{name}"] == json.dumps(value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "embedding"}, "saw kind 'embedding' with embedder None"),
        ({"kind": "token", "embedder": DIGEST}, "exactly if the kind is 'embedding'"),
        ({"kind": "filter", "proxies": 4}, "saw kind 'filter' with 4 proxies, wanted 0: evidence is counted"),
        ({"kind": "token", "rows": "average", "proxies": 4}, "saw kind 'token' with 4 proxies, wanted 0"),
        ({"rows": "average"}, "saw rows 'average' with kind 'filter', wanted kind 'token'"),
        ({"kind": "embedding", "embedder": DIGEST, "rows": "average"}, "with kind 'embedding', wanted kind 'token'"),
        ({"kind": "token", "rows": "average", "gain": 0.0}, "gain"),
        ({"kind": "token", "rows": "average", "gain": 1e38}, "gain"),
        ({"kind": "soft"}, "kind"),
        ({"stay": 1.0}, "stay"),
        ({"temperature": 0.0}, "temperature"),
        ({"proxies": 4097, "kind": "token"}, "proxies"),
        ({"projection_seed": -1}, "projection_seed"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RoutingRules(**changes)


def test_a_filter_is_what_is_taken_without_a_word() -> None:
    assert RoutingRules().kind == "filter"
    assert RoutingRules(kind="embedding", embedder=DIGEST).embedder == DIGEST
    assert RoutingRules(kind="token", proxies=16).proxies == 16


@pytest.mark.parametrize("kind", ["filter", "token"])
@pytest.mark.parametrize("rows", ["logistic", "lda"])
def test_charters_of_earlier_releases_are_read_and_keep_their_bytes(kind: str, rows: str) -> None:
    signed = SIGNED.replace("KIND", kind).replace("ROWS", rows).encode()
    assert Charter.parse(signed).canonical() == signed
    assert Charter.model_validate(tomllib.loads(Charter.parse(signed).to_toml())).canonical() == signed


def test_a_charter_whose_rows_are_the_average_signs_their_gain() -> None:
    charter = Charter.parse(SIGNED.replace("KIND", "token").replace("ROWS", "average").encode())
    assert charter.as_json()["routing"]["gain"] == 8.0
    other = charter.model_copy(update={"routing": RoutingRules(kind="token", rows="average", gain=4.0)})
    assert other.digest != charter.digest
    unread = charter.model_copy(update={"routing": RoutingRules(gain=4.0)})
    for each in (charter, other, unread):
        assert Charter.parse(each.canonical()) == each
