"""AdamW whose two moments are spread over the ranks, and what it holds as one stream.

Guarantees: one rank or several, the update is AdamW's to the last bit for the same gradient, and `full_state` is the
same stream, so that a checkpoint is continued by any number of ranks.

    optimizer = adamw(parameters, ranks=2, lr=3e-4)
    for name, tensor in full_state(named_parameters, optimizer):     # "weight.NAME", "step.NAME", "exp_avg.NAME", ...
        ...
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

STATES = ("weight", "step", "exp_avg", "exp_avg_sq")
"""What a checkpoint has of every parameter."""


def adamw(parameters: Sequence[nn.Parameter], *, ranks: int, **settings: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    """AdamW; with several ranks each holds the moments of about its share of the parameters, and updates those."""
    if ranks == 1:
        return torch.optim.AdamW(parameters, **settings)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, **settings)


def local(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The AdamW that holds this rank's moments."""
    found: torch.optim.Optimizer = getattr(optimizer, "optim", optimizer)
    return found


def own_parameters(optimizer: torch.optim.Optimizer) -> set[Tensor]:
    """The parameters whose moments this rank holds."""
    return {parameter for group in local(optimizer).param_groups for parameter in group["params"]}


def full_state(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor]]:
    """Weights, step counts and moments, one after the other, float32 on the CPU; all ranks go through it together."""
    owners = _owners(parameters, optimizer)
    moments = local(optimizer).state
    for name, parameter in parameters.items():
        yield f"weight.{name}", parameter.detach().float().cpu()
        for key in STATES[1:]:
            tensor = moments[parameter][key] if parameter in moments else _room(parameter, key)
            if owners:
                distributed.broadcast(tensor, src=owners[name])
            yield f"{key}.{name}", tensor.float().cpu()


def _owners(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Which rank holds whose moments; empty when there is but one."""
    if local(optimizer) is optimizer:
        return {}
    own = own_parameters(optimizer)
    told: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(told, [name for name, parameter in parameters.items() if parameter in own])
    return {name: rank for rank, names in enumerate(told) for name in names}


def _room(parameter: nn.Parameter, key: str) -> Tensor:
    """What another rank's tensor is received into."""
    return parameter.new_zeros(() if key == "step" else parameter.shape, dtype=torch.float32).detach()
