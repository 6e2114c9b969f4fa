"""Olmo2 anchors: norms after attention and MLP, so that the MLP reads the raw residual stream."""

from typing import Any

from torch import Tensor
from transformers import Olmo2Model
from transformers.models.olmo2.configuration_olmo2 import Olmo2Config
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer, Olmo2MLP

from motet.moe.families.family import Family
from motet.moe.families.flex_olmo import FlexOlmoStock
from motet.moe.gate import Routing
from motet.moe.mixture import Mixture


class Olmo2MixtureLayer(Olmo2DecoderLayer):  # type: ignore[no-untyped-call]
    """An Olmo2 decoder layer whose MLP is a mixture, which `routing` is handed to."""

    def __init__(self, config: Olmo2Config, layer_idx: int, mixture: Mixture) -> None:
        super().__init__(config, layer_idx)
        self.index = layer_idx
        self.mlp = mixture  # type: ignore[assignment]

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        *,
        routing: Routing | None = None,
        **attention: Any,  # noqa: ANN401 - what the model hands to its attention
    ) -> Tensor:
        attended, _ = self.self_attn(hidden_states=hidden_states, **attention)
        if routing is not None:
            norm = self.post_attention_layernorm
            routing.attended(self.index, attended, norm.variance_epsilon)
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        mixed: Tensor = self.post_feedforward_layernorm(self.mlp(hidden_states, routing))
        return hidden_states + mixed


OLMO2 = Family(
    model_type="olmo2",
    projections=("gate_proj", "up_proj", "down_proj"),
    post_norm=True,
    base=Olmo2Model,
    mlp=Olmo2MLP,
    layer=Olmo2MixtureLayer,
    stock=FlexOlmoStock(),
)
