"""What each expert brings: the exact Shapley value, and what leaving it out takes away.

values = {frozenset(): -3.47, frozenset({"code"}): -3.26, ...}     # minus bits per byte: more is better
shapley(values)["code"]                # sums over experts to values[all] - values[none]
leave_one_out(values)["code"]
"""

from collections.abc import Iterable, Mapping
from itertools import combinations
from math import factorial

from motet.protocols.errors import DataError

MAX_EXPERTS = 8
"""The exact value takes every subset: 256 of 8 experts."""

Values = Mapping[frozenset[str], float]
"""Expert set -> what it is worth; the anchor is in every set and not named."""


def subsets(experts: Iterable[str]) -> list[frozenset[str]]:
    """Every subset, the smaller ones first.

    Raises:
        DataError: there are more than eight experts.
    """
    names = sorted(set(experts))
    if len(names) > MAX_EXPERTS:
        raise DataError(f"saw {len(names)} experts, wanted at most {MAX_EXPERTS} for exact Shapley values; choose some")
    return [frozenset(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size)]


def shapley(values: Values) -> dict[str, float]:
    """The exact Shapley value of each expert (Shapley, "A value for n-person games", 1953).

    Raises:
        DataError: a subset is missing, or there are more than eight experts.
    """
    names = _experts(values)
    _require(values, subsets(names))
    count, shares = len(names), dict.fromkeys(names, 0.0)
    for others in subsets(names):
        if len(others) == count:
            continue
        weight = factorial(len(others)) * factorial(count - len(others) - 1) / factorial(count)
        for name in (name for name in names if name not in others):
            shares[name] += weight * (values[others | {name}] - values[others])
    return shares


def leave_one_out(values: Values) -> dict[str, float]:
    """What each expert adds to all the others together: v(all) - v(all but it).

    Raises:
        DataError: one of these sets is missing.
    """
    names = _experts(values)
    everyone = frozenset(names)
    _require(values, [everyone, *(everyone - {name} for name in names)])
    return {name: values[everyone] - values[everyone - {name}] for name in names}


def _experts(values: Values) -> list[str]:
    return sorted(frozenset().union(*values))


def _require(values: Values, wanted: Iterable[frozenset[str]]) -> None:
    missing = [chosen for chosen in wanted if chosen not in values]
    if missing:
        names = " + ".join(sorted(missing[0])) or "no expert"
        raise DataError(f"saw no value for {names}, one of {len(missing)} expert sets that lack one; score them first")
