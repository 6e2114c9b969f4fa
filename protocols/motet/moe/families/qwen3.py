"""Qwen3 anchors: a norm before attention and MLP, and norms of each head's queries and keys."""

from transformers import Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3MLP

from motet.moe.families.family import Family
from motet.moe.families.pre_norm import PreNormMixture
from motet.moe.families.qwen3_moe import Qwen3MoeStock


class Qwen3MixtureLayer(PreNormMixture, Qwen3DecoderLayer):  # type: ignore[misc, no-untyped-call]
    """A Qwen3 decoder layer whose MLP is a mixture, which `routing` is handed to."""


QWEN3 = Family(
    model_type="qwen3",
    projections=("gate_proj", "up_proj", "down_proj"),
    post_norm=False,
    base=Qwen3Model,
    mlp=Qwen3MLP,
    layer=Qwen3MixtureLayer,
    stock=Qwen3MoeStock(),
)
