"""What /v1/models and /v1/experts tell."""

from typing import Any

from motet.serving.api.service import Service
from motet.serving.expert_sets import ANCHOR
from motet.serving.hooks import Access


def model_listed(service: Service) -> dict[str, Any]:
    """The model, with the digest of its composite."""
    composite = service.composite
    return {
        "id": service.name,
        "object": "model",
        "created": service.since,
        "owned_by": "motet",
        "composite": composite.digest,
        "context": composite.context,
        "experts": list(composite.roster.names),
    }


def named_model(service: Service, access: Access, name: str) -> dict[str, Any]:
    """The model as it is asked for, NAME or NAME:-law, with the set that it has then.

    Raises ExpertSetError, and Refusal for another model's name.
    """
    chosen = service.named(name, access)
    return model_listed(service) | {"id": name, "experts_used": list(chosen.names), "expert_set": chosen.digest}


def experts_listed(service: Service, access: Access) -> dict[str, Any]:
    """Every expert by expert id, and the set that a request has which names none."""
    roster, usable = service.composite.roster, service.usable(access)
    contributions = (None, *roster.contributions)
    experts = [
        size.model_dump(mode="json")
        | {"id": size.name, "object": "expert", "contribution": contribution, "usable": size.name in usable}
        for size, contribution in zip(service.composite.sizes, contributions, strict=True)
    ]
    every = roster.choose(allowed=usable)
    head = {"object": "list", "composite": service.composite.digest, "anchor": roster.anchor, "always": ANCHOR}
    return head | {"data": experts, "default": {"experts": list(every.names), "expert_set": every.digest}}
