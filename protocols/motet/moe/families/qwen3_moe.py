"""Qwen3 composites as Qwen3-MoE: the same layers, the router called `gate`, every layer sparse.

Qwen3 may give some layers a sliding window and others none; Qwen3-MoE has one window for all of them, or none.
"""

from typing import TYPE_CHECKING

from transformers import PreTrainedConfig, Qwen3MoeConfig

from motet.moe.families.family import Treatment
from motet.moe.families.rotary import rope_problem

if TYPE_CHECKING:
    from motet.moe.widening import Widening

_KEPT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("rope_parameters", "attention_bias", "attention_dropout", "use_cache", "tie_word_embeddings"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)


class Qwen3MoeStock:
    """Qwen3MoeForCausalLM as the stock form of a Qwen3 composite."""

    architecture = "Qwen3MoeForCausalLM"
    always_normalises = False

    def problem(self, anchor: PreTrainedConfig) -> str | None:
        if anchor.hidden_act != "silu":
            return f"saw hidden_act {anchor.hidden_act!r}, wanted 'silu': other runtimes read no other into a Qwen3-MoE"
        if len(set(anchor.layer_types)) > 1:
            return "saw layers with and without a sliding window, wanted all alike: Qwen3-MoE has one window for all"
        return rope_problem(anchor)

    def name(self, native: str) -> str:
        return native.replace(".mlp.router.", ".mlp.gate.")

    def treatment(self, native: str) -> Treatment:
        return Treatment()  # never widened: behind a norm no channel is constant

    def config(
        self, anchor: PreTrainedConfig, *, experts: int, per_token: int, normalise: bool, widening: "Widening"
    ) -> PreTrainedConfig:
        slides = "sliding_attention" in anchor.layer_types
        stock = Qwen3MoeConfig(
            **{key: getattr(anchor, key) for key in _KEPT},
            **{"head_dim": anchor.head_dim},  # no field of Qwen3MoeConfig, yet read by its attention
            use_sliding_window=slides,
            sliding_window=anchor.sliding_window if slides else None,
            num_experts=experts,
            num_experts_per_tok=per_token,
            moe_intermediate_size=anchor.intermediate_size,
            norm_topk_prob=normalise,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            architectures=[self.architecture],
        )
        # transformers 5 writes num_local_experts; every other reader knows the name in Qwen's own configurations.
        stock.__dict__["num_experts"] = experts
        return stock
