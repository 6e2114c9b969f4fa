"""Merging by choosing and averaging whole networks.

Guarantees: every expert counts either nothing or as much as every other that was chosen.

    greedy_soup(problem).settings                # {"weight:medicine": 0.5, "weight:law": 0.5, "weight:news": 0.0}
"""

from motet.coordinator.merging.problem import Candidate, Problem, best
from motet.moe.experts import soup as mean_of


def best_single(problem: Problem) -> Candidate:
    """The one expert that is judged best."""
    return best(_singles(problem))


def soup(problem: Problem) -> Candidate:
    """The uniform mean of all experts (arXiv 2203.05482, section 2)."""
    return best([_average(problem, list(problem.experts))])


def greedy_soup(problem: Problem) -> Candidate:
    """The greedy soup (arXiv 2203.05482, recipe 1): experts from best to worst, each kept if the mean gets no worse.

    As in the paper the anchor itself is no ingredient.
    """
    singles = _singles(problem)
    ranked = sorted(zip(problem.experts, singles, strict=True), key=lambda pair: pair[1].judged)
    (first, found), *rest = ranked
    ingredients = [first]
    for name, _ in rest:
        tried = _average(problem, [*ingredients, name])
        if tried.judged <= found.judged:
            ingredients, found = [*ingredients, name], tried
    return best([found])


def _singles(problem: Problem) -> list[Candidate]:
    return [_average(problem, [name]) for name in problem.experts]


def _average(problem: Problem, chosen: list[str]) -> Candidate:
    weights = [1 / len(chosen) if name in chosen else 0.0 for name in problem.experts]
    return problem.candidate(problem.weights(weights), mean_of([problem.experts[name] for name in chosen]))
