"""What a charter's routing becomes on an anchor."""

import pytest

from motet.coordinator.anchor_rules import export_notes, rules_on
from motet.moe.families import FAMILIES
from motet.protocols.charter import RoutingRules
from motet.protocols.errors import ConfigurationError


def test_an_anchors_prior_that_nobody_chose_is_lost_on_nobody() -> None:
    token, chosen = RoutingRules(kind="token"), RoutingRules(kind="token", log_prior_anchor=1.0)
    assert rules_on(FAMILIES["olmo2"], token) == token
    for name in ("llama", "mistral", "qwen3"):
        family = FAMILIES[name]
        assert rules_on(family, token) == token.model_copy(update={"log_prior_anchor": 0.0})
        assert rules_on(family, chosen) == chosen
        assert rules_on(family, RoutingRules()) == RoutingRules()
        assert export_notes(family, rules_on(family, token)) == []
        assert "priors" in export_notes(family, chosen)[0]
        assert "filter" in export_notes(family, RoutingRules())[0]
    assert export_notes(FAMILIES["olmo2"], RoutingRules()) == []


@pytest.mark.parametrize(("name", "refused"), [("olmo2", False), ("llama", True), ("mistral", True), ("qwen3", False)])
def test_mixtral_always_normalises(name: str, refused: bool) -> None:
    rules = RoutingRules(kind="token", log_prior_anchor=0.0, normalise_top_k=False)
    if not refused:
        assert rules_on(FAMILIES[name], rules) == rules
        return
    with pytest.raises(ConfigurationError, match=r"normalise_top_k = false.*MixtralForCausalLM.*change"):
        rules_on(FAMILIES[name], rules)
