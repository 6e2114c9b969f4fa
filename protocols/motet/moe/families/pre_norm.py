"""What a decoder layer computes whose MLP reads a normalised copy of the residual stream, as in Llama and most since.

class LlamaMixtureLayer(LlamaDecoderLayer):
    def forward(self, hidden_states, *, routing=None, **attention):
        return pre_norm(self, hidden_states, routing, attention)
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from motet.moe.gate import Routing


def pre_norm(
    layer: Any,  # noqa: ANN401 - each family's own class
    hidden_states: Tensor,
    routing: Routing | None,
    attention: Mapping[str, Any],
) -> Tensor:
    """One layer with its `mlp` a mixture: hidden_states (batch, seq, hidden) -> the same shape.

    `layer` has `input_layernorm`, `self_attn`, `post_attention_layernorm` and `mlp`; `attention` is what the model
    hands to its attention.
    """
    attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **attention)
    hidden_states = hidden_states + attended
    mixed: Tensor = layer.mlp(layer.post_attention_layernorm(hidden_states), routing)
    return hidden_states + mixed
