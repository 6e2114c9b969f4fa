"""Mistral anchors: Llama's layers, with one sliding window for all of them or none."""

from typing import Any

from torch import Tensor
from transformers import MistralModel
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralMLP

from motet.moe.families.family import Family
from motet.moe.families.mixtral import MixtralStock
from motet.moe.families.pre_norm import pre_norm
from motet.moe.gate import Routing
from motet.moe.mixture import Mixture


class MistralMixtureLayer(MistralDecoderLayer):  # type: ignore[no-untyped-call]
    """A Mistral decoder layer whose MLP is a mixture, which `routing` is handed to."""

    def __init__(self, config: MistralConfig, layer_idx: int, mixture: Mixture) -> None:
        super().__init__(config, layer_idx)
        self.mlp = mixture  # type: ignore[assignment]

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        *,
        routing: Routing | None = None,
        **attention: Any,  # noqa: ANN401 - what the model hands to its attention
    ) -> Tensor:
        return pre_norm(self, hidden_states, routing, attention)


MISTRAL = Family(
    model_type="mistral",
    projections=("gate_proj", "up_proj", "down_proj"),
    post_norm=False,
    base=MistralModel,
    mlp=MistralMLP,
    layer=MistralMixtureLayer,
    stock=MixtralStock(),
)
