"""Llama anchors: a norm before attention and MLP. Many models are of this family: SmolLM2, TinyLlama, Yi, ..."""

from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

from motet.moe.families.family import Family
from motet.moe.families.mixtral import MixtralStock
from motet.moe.families.pre_norm import PreNormMixture


class LlamaMixtureLayer(PreNormMixture, LlamaDecoderLayer):  # type: ignore[misc, no-untyped-call]
    """A Llama decoder layer whose MLP is a mixture, which `routing` is handed to."""


LLAMA = Family(
    model_type="llama",
    projections=("gate_proj", "up_proj", "down_proj"),
    post_norm=False,
    base=LlamaModel,
    mlp=LlamaMLP,
    layer=LlamaMixtureLayer,
    stock=MixtralStock(),
)
