"""What the composite has to know about an anchor's architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from motet.moe.mixture import Mixture


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One architecture of anchors.

    model_type: as in the anchor's configuration.
    projections: the names of the MLP's matrices below `model.layers.{l}.mlp.`.
    post_norm: whether the MLP reads the raw residual stream, which lets a stock export fold in the router's bias.
    stock_type: the transformers `model_type` of the stock export.
    base: builds the anchor without its head, module names as in its checkpoints below `model.`.
    mlp: builds one feed-forward network.
    layer: builds a decoder layer (configuration, index, mixture) that takes `expert_mask` and hands it to the mixture.
    """

    model_type: str
    projections: tuple[str, ...]
    post_norm: bool
    stock_type: str
    base: Callable[[Any], PreTrainedModel]
    mlp: Callable[[Any], nn.Module]
    layer: Callable[[Any, int, Mixture], nn.Module]

    def ffn_names(self, layer: int) -> tuple[str, ...]:
        """The anchor's tensor names of one layer's feed-forward network."""
        return tuple(f"model.layers.{layer}.mlp.{projection}.weight" for projection in self.projections)
