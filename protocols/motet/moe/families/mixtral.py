"""Llama and Mistral composites as Mixtral: the same layers, experts and router under the names of its checkpoints.

Mixtral has no biases, neither in attention nor in the MLP, computes SiLU in every runtime that reads it, and always
normalises the weights of the chosen experts. Its tensors keep the names that its first release gave them, which is
what transformers, vLLM and llama.cpp read: `block_sparse_moe.gate`, `block_sparse_moe.experts.{e}.w1` (gate), `w2`
(down) and `w3` (up).
"""

import re
from typing import TYPE_CHECKING

from transformers import MixtralConfig, PreTrainedConfig

from motet.moe.families.family import Treatment
from motet.moe.families.rotary import rope_problem

if TYPE_CHECKING:
    from motet.moe.widening import Widening

_KEPT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range"),
    *("rms_norm_eps", "rope_parameters", "attention_dropout", "use_cache", "tie_word_embeddings"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
_PROJECTIONS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_NO_BIASES = ("attention_bias", "mlp_bias")


class MixtralStock:
    """MixtralForCausalLM as the stock form of a Llama or Mistral composite."""

    architecture = "MixtralForCausalLM"
    always_normalises = True

    def problem(self, anchor: PreTrainedConfig) -> str | None:
        if biased := [name for name in _NO_BIASES if getattr(anchor, name, False)]:
            return f"saw {biased[0]}, wanted none: Mixtral's layers have no biases"
        if anchor.hidden_act != "silu":
            return f"saw hidden_act {anchor.hidden_act!r}, wanted 'silu': other runtimes read no other into a Mixtral"
        if getattr(anchor, "layer_types", None) is not None:
            return "saw layer_types, wanted none: Mixtral's layers are all alike"
        return rope_problem(anchor)

    def name(self, native: str) -> str:
        name = native.replace(".mlp.router.", ".block_sparse_moe.gate.")
        name = name.replace(".mlp.experts.", ".block_sparse_moe.experts.")
        if ".experts." not in name:
            return name
        return re.sub(r"(gate|up|down)_proj", lambda found: _PROJECTIONS[found[0]], name)

    def treatment(self, native: str) -> Treatment:
        return Treatment()  # never widened: behind a norm no channel is constant

    def config(
        self, anchor: PreTrainedConfig, *, experts: int, per_token: int, normalise: bool, widening: "Widening"
    ) -> PreTrainedConfig:
        return MixtralConfig(
            **{key: getattr(anchor, key) for key in _KEPT},
            sliding_window=getattr(anchor, "sliding_window", None),
            num_local_experts=experts,
            num_experts_per_tok=per_token,
            architectures=[self.architecture],
        )
