"""How alike two orders are: Spearman's rho and Kendall's tau, ties counted as both definitions have it.

spearman([2.1, 2.4, 3.0], [1.9, 2.0, 2.7])       # 1.0: the same order
kendall([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])        # 0.333…; None where one side is all alike
"""

from collections.abc import Sequence
from itertools import combinations
from math import sqrt
from statistics import StatisticsError, correlation


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks, equal values sharing theirs; None with fewer than two different values."""
    try:
        return correlation(_ranks(first), _ranks(second))
    except StatisticsError:
        return None


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Tau-b (Kendall, "The treatment of ties in ranking problems", 1945); None where a side has no two values."""
    agreeing, ordered_first, ordered_second = 0, 0, 0
    for (a, b), (other_a, other_b) in combinations(zip(first, second, strict=True), 2):
        one, two = _sign(a - other_a), _sign(b - other_b)
        agreeing += one * two
        ordered_first += abs(one)
        ordered_second += abs(two)
    if not ordered_first or not ordered_second:
        return None
    return agreeing / sqrt(ordered_first * ordered_second)


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)
