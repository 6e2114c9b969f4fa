"""What adds up the evidence of tokens over the prefix: from a charter's rules to a composite's configuration.

evidence = evidence_of(charter.routing)                      # a filter, an average, or None: layers' rows decide
settings = prefix_settings(evidence, anchor_config, anchor.tensor)     # as `MotetConfig.evidence` holds them
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from motet.moe.average import Average, attention_unit
from motet.moe.evidence import Evidence
from motet.moe.families import family_of
from motet.protocols.charter import RoutingRules
from motet.protocols.composite_manifest import RoutingPolicy
from motet.protocols.errors import AssemblyError


def evidence_of(routing: RoutingRules | RoutingPolicy) -> Evidence | Average | None:
    """What a charter's rules or a composite's policy ask for; the average in no anchor's unit yet."""
    policy = RoutingPolicy.of(routing) if isinstance(routing, RoutingRules) else routing
    if policy.kind == "filter":
        return Evidence(stay=policy.stay, temperature=policy.temperature)
    return None if policy.gain is None else Average(gain=policy.gain)


def prefix_settings(
    evidence: Evidence | Average | None, config: Mapping[str, Any], tensor: Callable[[str], Tensor]
) -> dict[str, float] | None:
    """What a composite's configuration holds of it; an average takes the unit of the anchor.

    Args:
        evidence: from `evidence_of`.
        config: the anchor's configuration.
        tensor: the anchor's tensors by name.

    Raises:
        AssemblyError: the anchor's layers cannot tell an average how loud it is.
    """
    if not isinstance(evidence, Average):
        return None if evidence is None else asdict(evidence)
    require_post_norm(str(config["model_type"]))
    heads = int(config["num_attention_heads"])
    unit = attention_unit(tensor, heads=heads, key_heads=int(config.get("num_key_value_heads") or heads))
    return asdict(replace(evidence, unit=unit))


def require_post_norm(model_type: str) -> None:
    """Raises AssemblyError for an architecture whose MLPs cannot read an average from the residual stream."""
    if not family_of(model_type).post_norm:
        raise AssemblyError(
            f"saw rows 'average' for a {model_type} anchor, wanted one with norms behind attention: before its MLPs a "
            "norm divides the average by what else stands there; take kind 'filter', or rows 'logistic' or 'lda'"
        )
