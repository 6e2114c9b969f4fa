"""What a charter's routing becomes on an anchor."""

import pytest
from pydantic import ValidationError

from motet.coordinator.anchor_rules import export_notes, rules_on
from motet.moe.families import FAMILIES
from motet.protocols.charter import RoutingRules
from motet.protocols.errors import ConfigurationError


def test_an_anchors_prior_that_nobody_chose_is_lost_on_nobody() -> None:
    token, chosen = RoutingRules(kind="token"), RoutingRules(kind="token", log_prior_anchor=1.0)
    for name in ("llama", "mistral", "qwen3"):
        family = FAMILIES[name]
        assert rules_on(family, token) == token.model_copy(update={"log_prior_anchor": 0.0})
        assert rules_on(family, chosen) == chosen
        assert rules_on(family, RoutingRules()) == RoutingRules()
        assert export_notes(family, rules_on(family, token)) == []
        assert "priors" in export_notes(family, chosen)[0]
        assert "filter" in export_notes(family, RoutingRules())[0]


def test_rows_that_nobody_chose_read_the_average_where_an_export_can_hold_it() -> None:
    olmo2, token = FAMILIES["olmo2"], RoutingRules(kind="token")
    assert rules_on(olmo2, token) == RoutingRules(kind="token", rows="average")
    for kept in (
        RoutingRules(kind="token", rows="logistic"),
        RoutingRules(kind="token", rows="lda"),
        RoutingRules(kind="token", proxies=4),
        RoutingRules(),
    ):
        assert rules_on(olmo2, kept) == kept
    assert "average over the prefix" in export_notes(olmo2, RoutingRules())[0]
    assert export_notes(olmo2, rules_on(olmo2, token)) == []
    for name in ("llama", "mistral", "qwen3"):
        assert rules_on(FAMILIES[name], token).rows == "logistic"
        with pytest.raises(ConfigurationError, match=rf"rows 'average' for a {name} anchor.*take kind 'filter'"):
            rules_on(FAMILIES[name], RoutingRules(kind="token", rows="average"))


@pytest.mark.parametrize("rules", [{"kind": "filter"}, {"kind": "token", "proxies": 2}])
def test_rows_average_go_with_kind_token_and_nothing_tuned(rules: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"kind, (rows|proxies): saw"):
        RoutingRules(rows="average", **rules)


@pytest.mark.parametrize(("name", "refused"), [("olmo2", False), ("llama", True), ("mistral", True), ("qwen3", False)])
def test_mixtral_always_normalises(name: str, refused: bool) -> None:
    rules = RoutingRules(kind="token", rows="logistic", log_prior_anchor=0.0, normalise_top_k=False)
    if not refused:
        assert rules_on(FAMILIES[name], rules) == rules
        return
    with pytest.raises(ConfigurationError, match=r"normalise_top_k = false.*MixtralForCausalLM.*change"):
        rules_on(FAMILIES[name], rules)
