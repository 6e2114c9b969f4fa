"""What the composite has to know about an anchor's architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from motet.protocols.errors import AnchorError


@dataclass(frozen=True, kw_only=True, slots=True)
class Treatment:
    """What widening the hidden size does to one tensor of the stock export.

    hidden_axis: the axis that grows, filled with zeros; None when the tensor does not touch the hidden size.
    scaled: whether the tensor is multiplied by sqrt(old width / new width), so that norms over it stay what they were.
    constant: whether the first new channels carry the constant that the router reads its bias from.
    """

    hidden_axis: int | None = None
    scaled: bool = False
    constant: bool = False


class Stock(Protocol):
    """How a family is written as a stock transformers architecture.

    architecture: the class that loads an export.
    always_normalises: whether it scales the weights of the chosen experts to sum to one, whatever its configuration.
    """

    architecture: str
    always_normalises: bool

    def problem(self, anchor: PreTrainedConfig) -> str | None:
        """What of an anchor this architecture has no place for, as "saw X, wanted Y"; None if it can be written."""

    def name(self, native: str) -> str:
        """The stock name of a composite's tensor."""

    def treatment(self, native: str) -> Treatment:
        """What widening does to a composite's tensor."""

    def config(
        self, anchor: PreTrainedConfig, *, experts: int, per_token: int, normalise: bool, width: int
    ) -> PreTrainedConfig:
        """The stock configuration of a composite whose hidden size has become `width`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One architecture of anchors.

    model_type: as in the anchor's configuration.
    projections: the names of the MLP's matrices below `model.layers.{l}.mlp.`.
    post_norm: whether the MLP reads the raw residual stream, which lets a stock export fold in the router's bias.
    base: builds the anchor without its head, module names as in its checkpoints below `model.`.
    mlp: builds one feed-forward network.
    layer: the decoder layer, built from (configuration, index, mixture); hands its `routing` to the mixture.
    stock: its stock export.
    """

    model_type: str
    projections: tuple[str, ...]
    post_norm: bool
    base: Callable[[Any], PreTrainedModel]
    mlp: Callable[[Any], nn.Module]
    layer: type[nn.Module]
    stock: Stock

    def require(self, anchor: PreTrainedConfig) -> None:
        """Raises AnchorError unless composites of an anchor of this configuration can be exported."""
        if problem := self.stock.problem(anchor):
            raise AnchorError(
                f"{self.model_type} anchor: {problem} (its composites are exported as {self.stock.architecture}); "
                "take another anchor, docs/anchors.md lists them"
            )

    def routing_problem(self, *, normalise: bool) -> str | None:
        """What of a composite's routing the stock architecture has no place for; None if it can be written."""
        if self.stock.always_normalises and not normalise:
            return (
                f"saw normalise_top_k = false with a {self.model_type} anchor, wanted true: its composites are "
                f"exported as {self.stock.architecture}, which always normalises the chosen experts' weights"
            )
        return None

    def ffn_names(self, layer: int) -> tuple[str, ...]:
        """The anchor's tensor names of one layer's feed-forward network."""
        return tuple(f"model.layers.{layer}.mlp.{projection}.weight" for projection in self.projections)
