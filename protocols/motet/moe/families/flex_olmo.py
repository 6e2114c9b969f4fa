"""Olmo2 composites as FlexOlmo: the same layers, the router called `gate` and without a bias.

Widening (`motet.moe.widening`) is exact because Olmo2 normalises what attention and MLP put out, not what they read:
new channels of the residual stream keep the value that the embedding, or the first attention, gave them, and the router
reads them raw. Norms would notice the new widths, so their weights and inputs are scaled.
"""

import re
from typing import TYPE_CHECKING

from transformers import FlexOlmoConfig, PreTrainedConfig

from motet.moe.families.family import Treatment
from motet.moe.families.rotary import rope_problem

if TYPE_CHECKING:
    from motet.moe.widening import Widening

_KEPT = (
    *("vocab_size", "intermediate_size", "num_hidden_layers"),
    *("hidden_act", "max_position_embeddings", "initializer_range", "rope_parameters", "attention_bias"),
    *("attention_dropout", "use_cache", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"),
)
_FIRST = r"model\.layers\.0\."
_TREATMENTS = (
    (r"model\.embed_tokens\.weight", Treatment(columns="hidden", new="embedding")),
    (r"lm_head\.weight", Treatment(columns="hidden")),
    (r".*\.self_attn\.q_proj\.weight", Treatment(rows="queries", columns="hidden", scale="queries")),
    (r".*\.self_attn\.k_proj\.weight", Treatment(rows="keys", columns="hidden", scale="keys")),
    (r".*\.self_attn\.q_proj\.bias", Treatment(rows="queries", scale="queries")),
    (r".*\.self_attn\.k_proj\.bias", Treatment(rows="keys", scale="keys")),
    (r".*\.self_attn\.q_norm\.weight", Treatment(rows="queries", scale="queries-norm")),
    (r".*\.self_attn\.k_norm\.weight", Treatment(rows="keys", scale="keys-norm")),
    (_FIRST + r"self_attn\.v_proj\.weight", Treatment(rows="keys", columns="hidden", new="values")),
    (r".*\.self_attn\.v_proj\.weight", Treatment(rows="keys", columns="hidden")),
    (r".*\.self_attn\.v_proj\.bias", Treatment(rows="keys")),
    (_FIRST + r"self_attn\.o_proj\.weight", Treatment(rows="hidden", columns="queries", new="outputs")),
    (r".*\.self_attn\.o_proj\.weight", Treatment(rows="hidden", columns="queries")),
    (r".*\.self_attn\.o_proj\.bias", Treatment(rows="hidden")),
    (_FIRST + r"post_attention_layernorm\.weight", Treatment(rows="hidden", scale="norm", new="loudness")),
    (r"model\.norm\.weight|.*\.post_(attention|feedforward)_layernorm\.weight", Treatment(rows="hidden", scale="norm")),
    (r".*\.mlp\.experts\.\d+\.(gate|up)_proj\.weight", Treatment(columns="hidden")),
    (r".*\.mlp\.experts\.\d+\.down_proj\.weight", Treatment(rows="hidden")),
)


class FlexOlmoStock:
    """FlexOlmoForCausalLM as the stock form of an Olmo2 composite."""

    architecture = "FlexOlmoForCausalLM"
    always_normalises = False

    def problem(self, anchor: PreTrainedConfig) -> str | None:
        return rope_problem(anchor)

    def name(self, native: str) -> str:
        return native.replace(".mlp.router.", ".mlp.gate.")

    def treatment(self, native: str) -> Treatment:
        return next((treatment for names, treatment in _TREATMENTS if re.fullmatch(names, native)), Treatment())

    def config(
        self, anchor: PreTrainedConfig, *, experts: int, per_token: int, normalise: bool, widening: "Widening"
    ) -> PreTrainedConfig:
        kept = {key: getattr(anchor, key) for key in _KEPT}
        return FlexOlmoConfig(
            **kept | {"head_dim": widening.head},  # no field of FlexOlmoConfig, yet read by its attention
            num_attention_heads=anchor.num_attention_heads + widening.heads * widening.group,
            num_key_value_heads=anchor.num_key_value_heads + widening.heads,
            hidden_size=widening.width,
            rms_norm_eps=anchor.rms_norm_eps * anchor.hidden_size / widening.width,
            num_experts=experts,
            num_experts_per_tok=per_token,
            norm_topk_prob=normalise,
            architectures=[self.architecture],
        )
