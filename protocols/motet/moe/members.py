"""The members of a composite that is loaded, as experts again: to compose them anew, with one more beside them.

Guarantees: tensors are the composite's own, not copied; the experts that were there compute what they did before, but
for rounding where a log prior is taken out of a row's intercept and put back.

    model = MotetForCausalLM.from_pretrained("composite")
    [expert.name for expert in members_of(model)]
    larger = with_member(model, expert, log_prior=0.0)          # in the place of one of the same name, if there is one
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from motet.moe.composite import MotetForCausalLM, compose
from motet.moe.composition import factor_tensor_names, router_tensor_names
from motet.moe.config import ANCHOR
from motet.moe.experts import Expert
from motet.moe.lowrank import AnyExpert, Factors, LowRankExpert
from motet.moe.routing import RoutingRows
from motet.moe.scoring import dense_model
from motet.moe.token_router import TOKEN_ROUTER


def members_of(model: MotetForCausalLM) -> list[AnyExpert]:
    """Every expert of a composite but the anchor, by expert id, sharing its tensors."""
    return [_member(model, number) for number in range(1, model.config.num_experts)]


def rows_of_member(model: MotetForCausalLM, number: int) -> RoutingRows:
    """The routing of the expert of that id, its log prior taken out of the intercepts."""
    names = [router_tensor_names(layer) for layer in range(model.config.num_hidden_layers)]
    weight = torch.stack([model.get_parameter(name)[number].detach().float() for name, _ in names])
    bias = torch.stack([model.get_parameter(name)[number].detach().float() for _, name in names])
    tokens = None if model.token_router is None else model.get_parameter(TOKEN_ROUTER)[number].detach().float().cpu()
    return RoutingRows(weight=weight.cpu(), bias=bias.cpu() - model.config.priors[number], tokens=tokens)


def with_member(model: MotetForCausalLM, expert: AnyExpert, *, log_prior: float) -> MotetForCausalLM:
    """A composite with one more expert, or with this one in the place of the expert of its name.

    Args:
        model: the composite; the new one shares its tensors.
        expert: of either kind, in any dtype.
        log_prior: the new expert's, in nats, as the charter has it.

    Raises:
        AssemblyError: the expert does not fit the anchor.
    """
    config = model.config
    priors = dict(zip(config.names, config.priors, strict=True)) | {expert.name: log_prior}
    others = [each for each in members_of(model) if each.name != expert.name]
    return compose(
        dense_model(model, model.expert_ffn(ANCHOR)),
        [*others, _beside(expert, model.dtype)],
        top_k=config.experts_per_token,
        normalise_top_k=config.normalise_top_k,
        log_priors=priors,
        evidence=config.prefix,
    )


def _member(model: MotetForCausalLM, number: int) -> AnyExpert:
    name = model.config.names[number]
    contribution = (model.config.contributions or [])[number - 1]
    rows = rows_of_member(model, number)
    if model.config.ranks[number] is None:
        return Expert(name=name, contribution=contribution, ffn=model.expert_ffn(name), rows=rows)
    return LowRankExpert(name=name, contribution=contribution, factors=_factors(model, number), rows=rows)


def _factors(model: MotetForCausalLM, number: int) -> Mapping[str, Factors]:
    found = {}
    for name in model.expert_ffn(ANCHOR):
        a, b = factor_tensor_names(name, number)
        scale = float(model.get_submodule(a.removesuffix(".lora_A.weight")).scale)  # type: ignore[arg-type]
        found[name] = Factors(a=model.get_parameter(a), b=model.get_parameter(b), scale=scale)
    return found


def _beside(expert: AnyExpert, dtype: torch.dtype) -> AnyExpert:
    """A full expert's tensors in the dtype that the composite computes in; factors find their own way."""
    if isinstance(expert, LowRankExpert):
        return expert
    ffn: dict[str, Tensor] = {name: tensor.detach().to(dtype) for name, tensor in expert.ffn.items()}
    return replace(expert, ffn=ffn)
