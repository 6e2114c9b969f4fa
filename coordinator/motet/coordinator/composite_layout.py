"""What a composite holds, by its members' ranks and the routing policy alone: its tensors and its configuration.

Guarantees: no file is read, so that a plan knows the size of what an assembly would write and export.

    tensors = composite_tensors(anchor.manifest, [None, 16], policy)        # a full expert and one of rank 16
    settings = configuration(anchor.config, {digest: "medicine", other: "law"}, [None, 16], policy, evidence=None)
    stock_bytes(tensors, MotetConfig(**settings))
"""

from collections.abc import Mapping, Sequence
from typing import Any

from motet.coordinator.router_file import router_specs
from motet.moe.config import ANCHOR
from motet.protocols.anchor_manifest import VOLATILE_CONFIGURATION, AnchorManifest
from motet.protocols.composite_manifest import RoutingPolicy
from motet.protocols.expert_files import factor_specs
from motet.protocols.tensor_files import TensorSpec


def composite_tensors(
    manifest: AnchorManifest, ranks: Sequence[int | None], routing: RoutingPolicy
) -> list[TensorSpec]:
    """Everything that a composite's files hold; `ranks` are the members', None for a full expert."""
    experts = [
        as_expert(spec, expert) for expert, rank in enumerate((None, *ranks)) for spec in expert_tensors(manifest, rank)
    ]
    return [*shared_tensors(manifest), *experts, *router_specs(manifest, len(ranks) + 1, routing)]


def shared_tensors(manifest: AnchorManifest) -> list[TensorSpec]:
    """The anchor's tensors but its feed-forward networks."""
    ffn = manifest.ffn()
    return [tensor.spec for tensor in manifest.tensors if tensor.spec not in ffn]


def expert_tensors(manifest: AnchorManifest, rank: int | None) -> list[TensorSpec]:
    """An expert's matrices, or its factors, under the names of its store file."""
    return manifest.ffn() if rank is None else factor_specs(manifest, rank)


def as_expert(spec: TensorSpec, expert: int) -> TensorSpec:
    """A tensor of a store file, or of the anchor's own network, as the composite's expert of this id has it."""
    name = spec.name.replace(".mlp.", f".mlp.experts.{expert}.")
    return TensorSpec(name=name, dtype=spec.dtype, shape=spec.shape)


def configuration(
    anchor: Mapping[str, Any],
    members: Mapping[str, str],
    ranks: Sequence[int | None],
    routing: RoutingPolicy,
    *,
    evidence: Mapping[str, float] | None,
) -> dict[str, Any]:
    """What `MotetConfig` reads; no library version, so that assembling with another one changes nothing.

    Args:
        anchor: the anchor's own configuration.
        members: contribution digest -> name, in the order of the expert ids.
        ranks: theirs, in the same order; None for a full expert.
        routing: how they are weighed.
        evidence: what adds up the evidence over the prefix, as `MotetConfig.evidence`.
    """
    mixed: dict[str, Any] = {"expert_ranks": [None, *ranks]} if any(ranks) else {}
    stored = {key: value for key, value in anchor.items() if key not in VOLATILE_CONFIGURATION}
    return {
        "anchor_config": stored,
        "architectures": ["MotetForCausalLM"],
        "contributions": list(members),
        "dtype": stored.get("dtype", stored.get("torch_dtype")),
        "expert_names": [ANCHOR, *members.values()],
        "model_type": "motet",
        "evidence": None if evidence is None else dict(evidence),
        "experts_per_token": routing.top_k,
        "log_priors": [routing.log_prior_anchor, *(routing.log_prior_expert for _ in members)],
        "normalise_top_k": routing.normalise_top_k,
    } | mixed
