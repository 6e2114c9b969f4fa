"""What a charter's routing can be on an anchor, and what of it a stock export of that anchor's composites keeps.

rules = rules_on(anchor.family, RoutingRules(kind="token"))       # log_prior_anchor = 0 on a pre-norm anchor
print(*export_notes(anchor.family, rules), sep="\n")
"""

import json
from pathlib import Path

from motet.moe.families import Family, family_of
from motet.moe.prefix import require_post_norm
from motet.protocols.charter import RoutingRules
from motet.protocols.errors import AssemblyError, ConfigurationError


def rules_on(family: Family, rules: RoutingRules) -> RoutingRules:
    """The rules for a federation on an anchor of this family.

    Rows that nobody chose read the average over the prefix, where an export can hold it and no router is to be tuned.
    Where the router's bias would be lost in an export, an anchor's prior that nobody chose is 0 rather than 1, unless a
    filter, which is lost in any case, weighs the experts. Raises ConfigurationError for what no export could express.
    """
    if problem := family.routing_problem(normalise=rules.normalise_top_k):
        raise ConfigurationError(f"{problem}; change the charter's routing or take another anchor")
    if rules.rows == "average":
        try:
            require_post_norm(family.model_type)
        except AssemblyError as error:
            raise ConfigurationError(str(error)) from error
    if family.post_norm and rules.kind == "token" and not rules.proxies and "rows" not in rules.model_fields_set:
        return rules.model_copy(update={"rows": "average"})
    if family.post_norm or rules.kind == "filter" or "log_prior_anchor" in rules.model_fields_set:
        return rules
    return rules.model_copy(update={"log_prior_anchor": 0.0})


def family_at(directory: Path) -> Family:
    """The family of an anchor that was loaded before, by its configuration alone."""
    return family_of(json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"])


def export_notes(family: Family, rules: RoutingRules) -> list[str]:
    """What an export loses, for people; nothing if it computes what the native form computes."""
    stock = family.stock.architecture
    if family.post_norm:
        average = f"Exports to {stock} average over the prefix what a filter follows (docs/routing.md)."
        return [average] if rules.kind == "filter" else []
    if rules.kind == "filter":
        return [f"Exports to {stock} have no place for a filter: assemble with --drop-bias, or take --routing token."]
    if rules.log_prior_anchor != rules.log_prior_expert:
        return [f"Exports to {stock} have no place for priors: assemble with --drop-bias, which gives them up."]
    return []
