"""A low-rank expert at its owner's: how its factors begin, and the dense network that they are beside the anchor.

Guarantees: the same seed begins with the same factors, those of PEFT's LoRA, and thus as the anchor, since every B is
zero; a dense tensor is made when it is asked for, and no two of them are held.

    factors = initial_factors(anchor.manifest, rank=16, scale=2.0, seed=0)
    model, parameters = expert_model(material, factors=factors)
    factors = factors_of(parameters, anchor.manifest, scale=2.0)     # after training
    with swap_ffn(model, Expansion(anchor, factors)):                # the anchor with this expert alone
        ...
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from motet.moe.anchor import Anchor
from motet.moe.lowrank import Factors
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.expert_files import factor_names


class Expansion(Mapping[str, Tensor]):
    """The network of low-rank factors beside an anchor: float32, not rounded, under the anchor's names."""

    def __init__(self, anchor: Anchor, factors: Mapping[str, Factors]) -> None:
        self._anchor, self._factors = anchor, factors

    def __getitem__(self, name: str) -> Tensor:
        """The expert's matrix (out, in), W + scale B A."""
        return self._factors[name].expanded(self._anchor.tensor(name).float())

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)


def initial_factors(manifest: AnchorManifest, *, rank: int, scale: float, seed: int) -> dict[str, Factors]:
    """LoRA's first factors for every feed-forward matrix (out, in), float32: A (rank, in) drawn, B (out, rank) zero.

    They are PEFT's own (arXiv 2106.09685, section 4.1; A uniform, of variance 1 / (3 in)).
    """
    factors = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for spec in manifest.ffn():
            out, into = spec.shape
            a, b = _peft_factors(out, into, rank)
            factors[spec.name] = Factors(a=a, b=b, scale=scale)
    return factors


def parameters_of(factors: Mapping[str, Factors]) -> dict[str, nn.Parameter]:
    """The tensors of factors that are parameters, by the names that they have in an update."""
    named = {}
    for name, each in factors.items():
        for stored, tensor in zip(factor_names(name), (each.a, each.b), strict=True):
            named[stored] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
    return named


def factors_of(tensors: Mapping[str, Tensor], manifest: AnchorManifest, *, scale: float) -> dict[str, Factors]:
    """Factors from tensors under the names that they have in an update; other tensors are passed over."""
    names = {spec.name: factor_names(spec.name) for spec in manifest.ffn()}
    return {name: Factors(a=tensors[a], b=tensors[b], scale=scale) for name, (a, b) in names.items()}


def _peft_factors(out: int, into: int, rank: int) -> tuple[Tensor, Tensor]:
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    base: Any = nn.utils.skip_init(nn.Linear, into, out, bias=False)  # type: ignore[no-untyped-call]
    layer: Any = Linear(base, "default", LoraConfig(r=rank, lora_alpha=rank), r=rank, lora_alpha=rank)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return a.detach().float(), b.detach().float()
