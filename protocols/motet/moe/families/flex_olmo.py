"""Olmo2 composites as FlexOlmo: the same layers, the router called `gate` and without a bias.

Widening is exact because Olmo2 normalises what attention and MLP put out, not what they read: new channels of the
residual stream keep the value that the embedding gave them, and the router reads them raw. Three tensors would notice
the new width: the hidden norms divide by it, so their weights shrink by sqrt(old / new) and epsilon by old / new; and
the norms of queries and keys, whose own width stays, are given inputs that shrink as their epsilon did.
"""

import re

from transformers import FlexOlmoConfig, PreTrainedConfig

from motet.moe.families.family import Treatment
from motet.moe.families.rotary import rope_problem

_KEPT = (
    *("vocab_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_act", "max_position_embeddings", "initializer_range", "rope_parameters", "attention_bias"),
    *("attention_dropout", "use_cache", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"),
)
_TREATMENTS = (
    (r"model\.embed_tokens\.weight", Treatment(hidden_axis=1, constant=True)),
    (r"lm_head\.weight|.*\.self_attn\.v_proj\.weight|.*\.mlp\.router\.weight", Treatment(hidden_axis=1)),
    (r".*\.self_attn\.[qk]_proj\.weight", Treatment(hidden_axis=1, scaled=True)),
    (r".*\.self_attn\.[qk]_proj\.bias", Treatment(scaled=True)),
    (r".*\.self_attn\.o_proj\.(weight|bias)", Treatment(hidden_axis=0)),
    (r"model\.norm\.weight|.*\.post_(attention|feedforward)_layernorm\.weight", Treatment(hidden_axis=0, scaled=True)),
    (r".*\.mlp\.experts\.\d+\.(gate|up)_proj\.weight", Treatment(hidden_axis=1)),
    (r".*\.mlp\.experts\.\d+\.down_proj\.weight", Treatment(hidden_axis=0)),
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
        self, anchor: PreTrainedConfig, *, experts: int, per_token: int, normalise: bool, width: int
    ) -> PreTrainedConfig:
        kept = {key: getattr(anchor, key) for key in _KEPT}
        head_dim = getattr(anchor, "head_dim", None) or anchor.hidden_size // anchor.num_attention_heads
        return FlexOlmoConfig(
            **kept,
            **{"head_dim": head_dim},  # no field of FlexOlmoConfig, yet read by its attention
            hidden_size=width,
            rms_norm_eps=anchor.rms_norm_eps * anchor.hidden_size / width,
            num_experts=experts,
            num_experts_per_tok=per_token,
            norm_topk_prob=normalise,
            architectures=[self.architecture],
        )
