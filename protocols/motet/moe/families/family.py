"""What the composite has to know about an anchor's architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from motet.protocols.errors import AnchorError

if TYPE_CHECKING:
    from motet.moe.widening import Widening


Axis = Literal["hidden", "queries", "keys"]
"""What grows when a stock export is widened: the residual stream, all heads' queries, all heads' keys or values."""
Scale = Literal["norm", "queries", "keys", "queries-norm", "keys-norm"]
"""What keeps norms over more channels what they were: their weights shrink, or what they are given is scaled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Treatment:
    """What widening does to one tensor of the stock export (`motet.moe.widening`).

    rows, columns: what its axes grow with, filled with zeros; None for an axis that stays.
    scale: what it is multiplied with; None for nothing.
    new: what its new places hold beside zeros: an embedding constants and evidence, the first layer's values,
    attention output and norm what averages the evidence.
    """

    rows: Axis | None = None
    columns: Axis | None = None
    scale: Scale | None = None
    new: Literal["embedding", "values", "outputs", "loudness"] | None = None


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
        self, anchor: PreTrainedConfig, *, experts: int, per_token: int, normalise: bool, widening: "Widening"
    ) -> PreTrainedConfig:
        """The stock configuration of a composite that was widened so."""


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
        """Raises AnchorError unless composites of an anchor of this configuration can be made and exported."""
        if getattr(anchor, "quantization_config", None):
            raise AnchorError(
                f"{self.model_type} anchor: saw quantization_config, wanted plain weights, since experts are "
                "differences to them; take the model as it was before it was quantised, or save it dequantised"
            )
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
