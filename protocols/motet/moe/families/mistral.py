"""Mistral anchors: Llama's layers, with one sliding window for all of them or none."""

from transformers import MistralModel
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralMLP

from motet.moe.families.family import Family
from motet.moe.families.mixtral import MixtralStock
from motet.moe.families.pre_norm import PreNormMixture


class MistralMixtureLayer(PreNormMixture, MistralDecoderLayer):  # type: ignore[misc, no-untyped-call]
    """A Mistral decoder layer whose MLP is a mixture, which `routing` is handed to."""


MISTRAL = Family(
    model_type="mistral",
    projections=("gate_proj", "up_proj", "down_proj"),
    post_norm=False,
    base=MistralModel,
    mlp=MistralMLP,
    layer=MistralMixtureLayer,
    stock=MixtralStock(),
)
