"""Qwen3 anchors: a norm before attention and MLP, and norms of each head's queries and keys."""

from typing import Any

from torch import Tensor
from transformers import Qwen3Model
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3MLP

from motet.moe.families.family import Family
from motet.moe.families.pre_norm import pre_norm
from motet.moe.families.qwen3_moe import Qwen3MoeStock
from motet.moe.gate import Routing
from motet.moe.mixture import Mixture


class Qwen3MixtureLayer(Qwen3DecoderLayer):  # type: ignore[no-untyped-call]
    """A Qwen3 decoder layer whose MLP is a mixture, which `routing` is handed to."""

    def __init__(self, config: Qwen3Config, layer_idx: int, mixture: Mixture) -> None:
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


QWEN3 = Family(
    model_type="qwen3",
    projections=("gate_proj", "up_proj", "down_proj"),
    post_norm=False,
    base=Qwen3Model,
    mlp=Qwen3MLP,
    layer=Qwen3MixtureLayer,
    stock=Qwen3MoeStock(),
)
