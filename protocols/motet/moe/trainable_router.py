"""Which parameters of a router may be fitted: those that the stock export of its anchor's family can hold.

Behind a norm (docs/anchors.md) these are the rows alone, so that what is fitted is not lost on the way out.

    for parameter in trainable_router(model).values():
        parameter.requires_grad_(True)
"""

from torch import nn

from motet.moe.composite import MotetForCausalLM, router_tensor_names
from motet.moe.families import family_of


def trainable_router(model: MotetForCausalLM) -> dict[str, nn.Parameter]:
    """Every layer's rows (experts, hidden) by name, and its intercepts (experts,) if the MLPs read the raw stream."""
    biased = family_of(model.config.anchor.model_type).post_norm
    names = [router_tensor_names(layer) for layer in range(model.config.num_hidden_layers)]
    return {name: model.get_parameter(name) for pair in names for name in (pair if biased else pair[:1])}
