"""The charter: what its routing rules refuse, and the page that names its keys."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from motet.protocols.charter import Charter, RoutingRules
from motet.protocols.documents import Strict

DIGEST = "sha256:" + "0" * 64


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
        ({"kind": "filter", "proxies": 4}, "a filter's evidence is counted"),
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
