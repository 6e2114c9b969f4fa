"""The frozen anchor in four bits (NF4, Dettmers et al., QLoRA, arXiv 2305.14314, section 3) while factors are trained.

What is trained, the routing, the embedding and the head stay as they are. The expert is measured, and later used,
beside the anchor as it is published: training beside a rounded one saves memory and costs a little quality.

    require_bitsandbytes()
    quantise_frozen(model)                     # in place; a quarter of the layers' memory in bfloat16
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from motet.protocols.errors import ConfigurationError


def require_bitsandbytes() -> None:
    """Raises ConfigurationError when what quantises is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            "saw frozen_4bit under [training] without bitsandbytes, wanted it installed: pip install "
            "'motet[four-bit]', or take the line out of owner.toml"
        )


def quantise_frozen(model: PreTrainedModel) -> None:
    """Round the weights of all layers' frozen linear maps to four bits; they compute in the dtype they had.

    On a GPU the rounding happens when the model is moved there.
    """
    require_bitsandbytes()
    layers = model.get_submodule("model.layers")
    frozen = [(name, each) for name, each in layers.named_modules() if _is_frozen_linear(each)]
    for name, linear in frozen:
        parent, _, leaf = name.rpartition(".")
        setattr(layers.get_submodule(parent), leaf, _rounded(linear))


def _is_frozen_linear(module: nn.Module) -> bool:
    """A plain linear map; subclasses are routers and factors."""
    return type(module) is nn.Linear and not module.weight.requires_grad


def _rounded(linear: nn.Module) -> nn.Module:
    kinds: Any = import_module("bitsandbytes.nn")  # whose types name none of what follows
    assert isinstance(linear, nn.Linear)  # noqa: S101 - only those are asked for
    dtype: torch.dtype = linear.weight.dtype
    made: nn.Module = kinds.Linear4bit(
        linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=dtype, quant_type="nf4"
    )
    made.weight = kinds.Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
    if linear.bias is not None:
        made.bias = linear.bias
    return made.to(linear.weight.device)
