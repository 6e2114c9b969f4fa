"""What a composite's tensors are called, and what they are made of: an anchor's, its experts' and a router's.

No weight is copied: a full expert's tensors, and the factors of a low-rank one, are taken as they are given, only moved
to the anchor's device; factors as files hold them, in bfloat16, are brought to the dtype of an anchor that has another.

    expert_tensor_name("model.layers.0.mlp.gate_proj.weight", 3)  # "model.layers.0.mlp.experts.3.gate_proj.weight"
    state = composed_state(anchor_model, experts, config)         # by name, what `compose` puts into its model
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.moe.config import MotetConfig
from motet.moe.experts import Expert
from motet.moe.families import family_of
from motet.moe.lowrank import AnyExpert, LowRankExpert
from motet.moe.routing import RoutingRows
from motet.moe.token_router import TOKEN_ROUTER
from motet.protocols.errors import AssemblyError
from motet.protocols.expert_files import factor_names


def expert_tensor_name(anchor_name: str, expert: int) -> str:
    """Where an anchor's FFN tensor lies in a composite: `mlp.gate_proj.weight` -> `mlp.experts.3.gate_proj.weight`."""
    return anchor_name.replace(".mlp.", f".mlp.experts.{expert}.")


def factor_tensor_names(anchor_name: str, expert: int) -> tuple[str, str]:
    """Where a low-rank expert's factors A (rank, in) and B (out, rank) of that tensor lie in a composite."""
    a, b = factor_names(expert_tensor_name(anchor_name, expert))
    return a, b


def router_tensor_names(layer: int) -> tuple[str, str]:
    """The names of a layer's router rows (experts, hidden) and biases (experts,), both float32 on disk."""
    return f"model.layers.{layer}.mlp.router.weight", f"model.layers.{layer}.mlp.router.bias"


def router_tensors(
    rows: Sequence[RoutingRows], layer: int, log_priors: Sequence[float], hidden_size: int
) -> tuple[Tensor, Tensor]:
    """One layer's router: weight (experts, hidden) and bias (experts,) in float32, the anchor's zero row first.

    `rows` are the closed experts' in the order of their ids; `log_priors` are in nats, one per expert, anchor included.
    """
    weight = torch.stack([torch.zeros(hidden_size), *(one.weight[layer] for one in rows)])
    bias = torch.stack([torch.zeros(()), *(one.bias[layer] for one in rows)])
    return weight, bias + torch.tensor(log_priors, dtype=torch.float32)


def token_router_tensor(rows: Sequence[RoutingRows], vocabulary_size: int) -> Tensor:
    """A filter's evidence: (experts, vocabulary) float32, the anchor's zeros first, then the closed experts' by id."""
    return torch.stack([torch.zeros(vocabulary_size), *(one.evidence(vocabulary_size) for one in rows)])


def prior_list(names: Sequence[str], log_priors: Mapping[str, float] | None) -> list[float]:
    """Log priors in the order of expert ids, zero where none is given; raises AssemblyError for an unknown name."""
    priors = dict(log_priors or {})
    unknown = sorted(set(priors) - set(names))
    if unknown:
        raise AssemblyError(f"saw log priors for {', '.join(unknown)}, wanted names among {', '.join(names)}")
    return [priors.get(name, 0.0) for name in names]


def composed_state(
    anchor_model: PreTrainedModel, experts: Sequence[AnyExpert], config: MotetConfig
) -> dict[str, Tensor]:
    """Every tensor of the composite by its name; `experts` are in the order of their ids, from 1 on.

    Raises AssemblyError when an expert does not fit the anchor.
    """
    family, layers = family_of(anchor_model.config.model_type), range(anchor_model.config.num_hidden_layers)
    state: dict[str, Tensor] = dict(anchor_model.named_parameters(remove_duplicate=False))
    wide = torch.float64 if anchor_model.dtype == torch.float64 else torch.float32
    for layer in layers:
        for name in family.ffn_names(layer):
            own = state.pop(name)
            state[expert_tensor_name(name, 0)] = own
            for number, expert in enumerate(experts, start=1):
                state |= _expert_tensors(expert, number, name, own)
        tensors = router_tensors([one.rows for one in experts], layer, config.priors, config.hidden_size)
        for name, tensor in zip(router_tensor_names(layer), tensors, strict=True):
            moved = tensor.to(device=anchor_model.device, dtype=wide)
            state[name] = nn.Parameter(moved, requires_grad=False)
    if config.prefix is not None:
        evidence = token_router_tensor([one.rows for one in experts], config.vocab_size)
        state[TOKEN_ROUTER] = nn.Parameter(evidence.to(anchor_model.device, wide), requires_grad=False)
    return state


def adopt(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts these very tensors in place of the model's. `load_state_dict` would overwrite their `requires_grad`."""
    for name in [name for name, _ in model.named_parameters(remove_duplicate=False)]:
        owner, _, leaf = name.rpartition(".")
        tensor = state[name]
        setattr(model.get_submodule(owner), leaf, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor))


def adopt_scales(model: nn.Module, experts: Sequence[AnyExpert]) -> None:
    """Gives a model's low-rank experts the scales of the factors that they were made from."""
    for number, expert in enumerate(experts, start=1):
        if isinstance(expert, LowRankExpert):
            for name, each in expert.factors.items():
                module = expert_tensor_name(name, number).removesuffix(".weight")
                model.get_submodule(module).scale = each.scale  # type: ignore[assignment]


def adopt_unsaved(model: PreTrainedModel, anchor_model: PreTrainedModel) -> None:
    """Gives a model what no tensor file holds: copies of the anchor's buffers and generation settings, and its mode."""
    for name, buffer in anchor_model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner).register_buffer(leaf, buffer.clone(), persistent=False)
    model.generation_config = copy.deepcopy(anchor_model.generation_config)
    model.train(anchor_model.training)


def _expert_tensors(expert: AnyExpert, number: int, name: str, own: Tensor) -> dict[str, Tensor]:
    """One expert's tensors in place of the anchor's `own`: a matrix, or two factors."""
    if isinstance(expert, Expert):
        return {expert_tensor_name(name, number): _fitting(expert, name, own)}
    return dict(zip(factor_tensor_names(name, number), _fitting_factors(expert, name, own), strict=True))


def _fitting_factors(expert: LowRankExpert, name: str, own: Tensor) -> tuple[Tensor, Tensor]:
    rank, found = expert.rank, expert.factors.get(name)
    wanted = ((rank, own.shape[1]), (own.shape[0], rank))
    saw = None if found is None else (tuple(found.a.shape), tuple(found.b.shape))
    if found is None or saw != wanted:
        raise AssemblyError(
            f"expert {expert.name}: saw factors {saw or 'nothing'} as {name}, wanted {wanted} beside the anchor's "
            f"{tuple(own.shape)}; make the expert from this anchor"
        )
    return _beside(found.a, own), _beside(found.b, own)


def _beside(factor: Tensor, own: Tensor) -> Tensor:
    """A factor on the anchor's device and in its dtype; one that is being trained in float32 stays what it is."""
    if isinstance(factor, nn.Parameter) and factor.dtype in (torch.float32, own.dtype) and factor.device == own.device:
        return factor
    return factor.to(own.device, own.dtype)


def _fitting(expert: Expert, name: str, own: Tensor) -> Tensor:
    tensor = expert.ffn.get(name)
    trained = isinstance(tensor, nn.Parameter) and tensor.dtype == torch.float32  # beside an anchor of half the bytes
    if tensor is None or tensor.shape != own.shape or not (tensor.dtype == own.dtype or trained):
        seen = "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
        raise AssemblyError(
            f"expert {expert.name}: saw {seen} as {name}, wanted {tuple(own.shape)} {own.dtype} as in the anchor; "
            "make the expert from this anchor"
        )
    return tensor if tensor.device == own.device else tensor.to(own.device)
