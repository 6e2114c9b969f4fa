"""Merging by arithmetic on task vectors, its few settings chosen from a small grid by the judge.

Guarantees: at most twelve judgements per method. Scales are multiples of 1 / experts: for a handful of experts they
cover what the papers recommend; with sixteen, dare and breadcrumbs are tried at 0.19 at most.

    task_arithmetic(problem).settings            # {"scale": 0.3}
    dare(problem).settings                       # {"density": 0.5, "scale": 0.4}, the same for the same seed

PEFT computes all but breadcrumbs, which it does not have.
"""

from collections.abc import Callable, Iterator
from itertools import product
from types import ModuleType

import torch
from torch import Tensor

from motet.coordinator.merging.problem import Candidate, Problem, TaskVectors, best
from motet.protocols.errors import ConfigurationError

SUM_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0)
"""Scales of a plain sum of task vectors, times 1 / experts: 1 is the soup, 5 at five experts the whole sum."""
SPARSE_SCALES = (1.0, 1.5, 2.0, 3.0)
"""The same where part of each vector is left out."""
TIES_SCALES = (0.7, 1.0, 1.4, 2.0)
"""Scales of a mean over the experts that agree, for which 1 is natural."""
TIES_DENSITIES = (0.2, 0.5, 0.9)
DARE_DENSITIES = (0.1, 0.5, 0.9)
BREADCRUMBS_BETAS = (0.1, 0.5, 0.85)
BREADCRUMBS_GAMMA = 0.99


def task_arithmetic(problem: Problem) -> Candidate:
    """Anchor + scale x the sum of the task vectors (arXiv 2212.04089, section 4)."""
    vectors, peft = problem.vectors, _peft()

    def candidates() -> Iterator[Candidate]:
        for scale in _scales(problem, SUM_SCALES):
            change = peft.task_arithmetic(list(vectors.differences), _weights(problem, scale))
            yield problem.candidate({"scale": scale}, vectors.network(change))

    return best(candidates())


def ties(problem: Problem) -> Candidate:
    """TIES (arXiv 2306.01708, section 4): trim over all tensors at once, elect signs by mass, average who agrees."""
    peft = _peft()

    def merged(vectors: TaskVectors, density: float) -> Tensor:
        change: Tensor = peft.ties(list(vectors.differences), _weights(problem, 1.0), density)
        return change

    return best(_on_grid(problem, "density", TIES_DENSITIES, TIES_SCALES, merged))


def dare(problem: Problem) -> Candidate:
    """DARE before task arithmetic (arXiv 2311.03099, section 3.2): drop at random, rescale, add up."""
    peft = _peft()

    def merged(vectors: TaskVectors, density: float) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(problem.seed)
            change: Tensor = peft.dare_linear(list(vectors.differences), _weights(problem, 1.0), density)
        return change

    return best(_on_grid(problem, "density", DARE_DENSITIES, _scales(problem, SPARSE_SCALES), merged))


def breadcrumbs(problem: Problem) -> Candidate:
    """Model Breadcrumbs (arXiv 2312.06795, section 3): every tensor without its smallest and its largest changes.

    `beta` and `gamma` are the shares of values below which, and from which on, a change is masked.
    """

    def merged(vectors: TaskVectors, beta: float) -> Tensor:
        layers = torch.split(vectors.differences, vectors.sizes, dim=1)
        return torch.cat([_between(layer, beta, BREADCRUMBS_GAMMA) for layer in layers], dim=1).sum(dim=0)

    found = best(_on_grid(problem, "beta", BREADCRUMBS_BETAS, _scales(problem, SPARSE_SCALES), merged))
    found.settings["gamma"] = BREADCRUMBS_GAMMA
    return found


def _on_grid(
    problem: Problem,
    knob: str,
    values: tuple[float, ...],
    scales: tuple[float, ...],
    merged: Callable[[TaskVectors, float], Tensor],
) -> Iterator[Candidate]:
    """Every value of the knob with every scale; what the knob gives is computed once."""
    changes = {value: merged(problem.vectors, value) for value in values}
    for value, scale in product(values, scales):
        yield problem.candidate({knob: value, "scale": scale}, problem.vectors.network(scale * changes[value]))


def _between(layer: Tensor, beta: float, gamma: float) -> Tensor:
    """The values (experts, parameters of one tensor) whose size ranks from `beta` up to `gamma` of all; else zero."""
    first, last = round(layer.shape[1] * beta), round(layer.shape[1] * gamma)
    order = layer.abs().argsort(dim=1, stable=True)  # changes in bfloat16 are often of one size: no threshold
    mask = torch.zeros_like(layer).scatter(1, order[:, first:last], 1.0)
    return layer * mask


def _scales(problem: Problem, multiples: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(multiple / len(problem.experts) for multiple in multiples)


def _weights(problem: Problem, scale: float) -> Tensor:
    return torch.full((len(problem.experts),), scale)


def _peft() -> ModuleType:
    try:
        from peft.utils import merge_utils
    except ImportError as error:
        raise ConfigurationError(
            f"merging needs PEFT ({error}); install it with `pip install motet[merging]`"
        ) from error
    return merge_utils
