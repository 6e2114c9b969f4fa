"""What a decoder layer computes whose MLP reads a normalised copy of the residual stream, as in Llama and most since.

class LlamaMixtureLayer(PreNormMixture, LlamaDecoderLayer):
    ...
"""

from typing import Any

from torch import Tensor

from motet.moe.gate import Routing
from motet.moe.mixture import Mixture


class PreNormMixture:
    """Makes a family's decoder layer, named after this class among the bases, one whose MLP is a mixture.

    The layer has `input_layernorm`, `self_attn`, `post_attention_layernorm` and `mlp`, as transformers names them.
    """

    self_attn: Any
    input_layernorm: Any
    post_attention_layernorm: Any
    mlp: Any

    def __init__(self, config: Any, layer_idx: int, mixture: Mixture) -> None:  # noqa: ANN401 - each family's own
        super().__init__(config, layer_idx)  # type: ignore[call-arg]
        self.mlp = mixture

    def forward(
        self,
        hidden_states: Tensor,
        *,
        routing: Routing | None = None,
        **attention: Any,  # noqa: ANN401 - what the model hands to its attention
    ) -> Tensor:
        """hidden_states (batch, seq, hidden) -> the same shape; `routing` is handed to the mixture."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **attention)
        hidden_states = hidden_states + attended
        mixed: Tensor = self.mlp(self.post_attention_layernorm(hidden_states), routing)
        return hidden_states + mixed
