"""Merging with coefficients that are learned or searched for, one or more per expert.

Guarantees: both begin at the uniform mean, which is judged too, so that neither ends worse than it on the judge's text;
at most `EVALUATIONS` judgements, or `STEPS` gradients.

    cma_es(problem).settings                     # {"weight:medicine": 0.61, "weight:law": 0.4}
    atlas(problem).settings["weight:medicine"]   # a coefficient for every tensor
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from motet.coordinator.merging.problem import Candidate, Problem, TaskVectors, best
from motet.protocols.errors import ConfigurationError

STEPS, JUDGED_EVERY = 60, 20
STEP_SIZE = 0.1
"""Adam's, times 1 / experts."""
EVALUATIONS = 60
SPREAD = 0.5
"""The first standard deviation of the search, times 1 / experts."""


def atlas(problem: Problem) -> Candidate:
    """aTLAS (arXiv 2407.02880, section 3): a coefficient per expert and tensor, learned by gradient.

    The loss is the judge's own on mini-batches, plain language modelling, and of the coefficients after every
    `JUDGED_EVERY` steps those that are judged best are kept.
    """
    experts = len(problem.experts)
    coefficients = torch.full((experts, len(problem.anchor)), 1 / experts, requires_grad=True)
    optimiser = torch.optim.Adam([coefficients], lr=STEP_SIZE / experts)

    def candidates() -> Iterator[Candidate]:
        for step in range(STEPS + 1):
            network = problem.vectors.network(_scaled(problem.vectors, coefficients))
            if step % JUDGED_EVERY == 0:
                yield problem.candidate(problem.weights(coefficients.tolist()), network)
            if step < STEPS:
                (coefficients.grad,) = torch.autograd.grad(problem.judge.loss(network, step), [coefficients])
                optimiser.step()

    return best(candidates())


def cma_es(problem: Problem) -> Candidate:
    """One coefficient per expert, found by CMA-ES on the judge as evolutionary merging does (arXiv 2403.13187)."""
    optimiser = _optimiser(problem)

    def judged(point: np.ndarray[Any, np.dtype[np.float64]]) -> Candidate:
        weights = point[: len(problem.experts)]
        change = torch.from_numpy(weights).float() @ problem.vectors.differences
        return problem.candidate(problem.weights(weights.tolist()), problem.vectors.network(change))

    def candidates() -> Iterator[Candidate]:
        yield judged(optimiser.mean)
        for _ in range((EVALUATIONS - 1) // optimiser.population_size):
            told = []
            for _ in range(optimiser.population_size):
                point = optimiser.ask()
                candidate = judged(point)
                told.append((point, candidate.judged))
                yield candidate
            optimiser.tell(told)

    return best(candidates())


def _scaled(vectors: TaskVectors, coefficients: Tensor) -> Tensor:
    """The sum of task vectors, each tensor by its own coefficient (experts, tensors) -> (parameters,)."""
    parts = torch.split(vectors.differences, vectors.sizes, dim=1)
    return torch.cat([column @ part for column, part in zip(coefficients.unbind(dim=1), parts, strict=True)])


def _optimiser(problem: Problem) -> Any:  # noqa: ANN401 - cmaes is untyped
    try:
        from cmaes import CMA  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigurationError(
            f"cma-es needs cmaes ({error}); install it with `pip install motet[merging]`"
        ) from error
    experts = len(problem.experts)
    dimensions = max(2, experts)  # the library wants two at least; with one expert the second counts for nothing
    return CMA(mean=np.full(dimensions, 1 / experts), sigma=SPREAD / experts, seed=problem.seed)
