"""The router's file of a composite: the members' own rows side by side, or rows that were tuned together.

Own rows are concatenated and nothing else, so that the file without a member is the same as if it had never been.

    specs = write_router(folder / "router.safetensors", anchor, expert_files, routing)
    specs = write_router(folder / "router.safetensors", anchor, expert_files, routing, tuned)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from motet.moe.anchor import Anchor
from motet.moe.token_router import TOKEN_ROUTER
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.composite_manifest import RoutingPolicy, Tuning
from motet.protocols.errors import AssemblyError
from motet.protocols.expert_files import ROUTER_TOKENS, router_bias_name, router_weight_name
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TunedRouter:
    """A router fitted jointly: by layer weight (experts, hidden) and bias (experts,), float32; and with whom."""

    tensors: Mapping[str, Tensor]
    tag: Tuning


def router_specs(manifest: AnchorManifest, experts: int, routing: RoutingPolicy) -> list[TensorSpec]:
    """What the file holds for so many experts, the anchor among them."""
    size, layers = manifest.hidden_size, range(manifest.layers)
    specs = [TensorSpec(name=router_weight_name(layer), dtype="F32", shape=(experts, size)) for layer in layers]
    specs += [TensorSpec(name=router_bias_name(layer), dtype="F32", shape=(experts,)) for layer in layers]
    tokens = TensorSpec(name=TOKEN_ROUTER, dtype="F32", shape=(experts, manifest.vocabulary_size))
    return [*specs, tokens] if routing.counted else specs


def write_router(
    path: Path, anchor: Anchor, files: Sequence[Path], routing: RoutingPolicy, tuned: TunedRouter | None = None
) -> list[TensorSpec]:
    """Write the rows, the anchor's zero row first, with the log priors in the bias; and the evidence by token.

    Args:
        path: the new file.
        anchor: the anchor.
        files: the members' store files, in the order of their ids.
        routing: how they are weighed.
        tuned: what to write instead of their own rows.

    Returns:
        What the file holds.

    Raises:
        AssemblyError: the tuned router does not fit, or is not finite.
    """
    size, layers, experts = anchor.manifest.hidden_size, range(anchor.manifest.layers), len(files) + 1
    specs = router_specs(anchor.manifest, experts, routing)
    with TensorWriter(path, specs) as writer:
        for layer in layers:
            made = _own_rows(files, layer, size, routing) if tuned is None else _tuned_rows(tuned, layer, experts, size)
            writer.write_tensor(router_weight_name(layer), made[0])
            writer.write_tensor(router_bias_name(layer), made[1])
        if routing.counted:
            writer.write(TOKEN_ROUTER, _evidence(files, anchor.manifest.vocabulary_size))
    return specs


def _own_rows(files: Sequence[Path], layer: int, size: int, routing: RoutingPolicy) -> tuple[Tensor, Tensor]:
    """One layer's router from the members' own rows: weight (experts, hidden) and bias (experts,)."""
    experts = len(files) + 1
    weight, bias = torch.zeros(experts, size), torch.full((experts,), routing.log_prior_anchor)
    for expert, file in enumerate(files, start=1):
        with TensorReader(file) as reader:
            weight[expert] = reader.tensor(router_weight_name(layer))
            bias[expert] = reader.tensor(router_bias_name(layer))[0] + routing.log_prior_expert
    return weight, bias


def _tuned_rows(tuned: TunedRouter, layer: int, experts: int, size: int) -> tuple[Tensor, Tensor]:
    """The same from a tuned router."""
    wanted = {router_weight_name(layer): (experts, size), router_bias_name(layer): (experts,)}
    for name, shape in wanted.items():
        tensor = tuned.tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            seen = "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
            raise AssemblyError(f"saw {seen} as the tuned {name}, wanted {shape} torch.float32; tune again")
        if not tensor.isfinite().all():
            raise AssemblyError(f"saw NaN or infinity in the tuned {name}, wanted finite numbers; tune again")
    weight, bias = (tuned.tensors[name] for name in wanted)
    return weight, bias


def _evidence(files: Sequence[Path], vocabulary_size: int) -> Iterator[memoryview]:
    """What every token says of every expert, float32, the anchor's zeros first."""
    yield memoryview(bytes(4 * vocabulary_size))
    for file in files:
        with TensorReader(file) as reader:
            yield reader.tensor(ROUTER_TOKENS).float().numpy().data
