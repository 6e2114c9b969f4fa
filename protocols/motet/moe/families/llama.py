"""Llama anchors: a norm before attention and MLP. Many models are of this family: SmolLM2, TinyLlama, Yi, ..."""

from typing import Any

from torch import Tensor
from transformers import LlamaModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

from motet.moe.families.family import Family
from motet.moe.families.mixtral import MixtralStock
from motet.moe.families.pre_norm import pre_norm
from motet.moe.gate import Routing
from motet.moe.mixture import Mixture


class LlamaMixtureLayer(LlamaDecoderLayer):  # type: ignore[no-untyped-call]
    """A Llama decoder layer whose MLP is a mixture, which `routing` is handed to."""

    def __init__(self, config: LlamaConfig, layer_idx: int, mixture: Mixture) -> None:
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


LLAMA = Family(
    model_type="llama",
    projections=("gate_proj", "up_proj", "down_proj"),
    post_norm=False,
    base=LlamaModel,
    mlp=LlamaMLP,
    layer=LlamaMixtureLayer,
    stock=MixtralStock(),
)
