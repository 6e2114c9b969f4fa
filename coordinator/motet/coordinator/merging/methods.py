"""The merging methods by name.

merged = merge("greedy-soup", anchor.ffn(), {"medicine": expert.ffn, "law": other.ffn}, judge)
merged.method, merged.settings, merged.judged
for method in METHODS: ...
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from motet.coordinator.merging.arithmetic import breadcrumbs, dare, task_arithmetic, ties
from motet.coordinator.merging.averages import best_single, greedy_soup, soup
from motet.coordinator.merging.coefficients import atlas, cma_es
from motet.coordinator.merging.problem import Candidate, Judge, Networks, Problem
from motet.protocols.errors import ConfigurationError

_BY_NAME: dict[str, Callable[[Problem], Candidate]] = {
    "best-single": best_single,
    "soup": soup,
    "greedy-soup": greedy_soup,
    "task-arithmetic": task_arithmetic,
    "ties": ties,
    "dare": dare,
    "breadcrumbs": breadcrumbs,
    "atlas": atlas,
    "cma-es": cma_es,
}

METHODS: tuple[str, ...] = tuple(_BY_NAME)
"""The names that `merge` takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """One feed-forward network made of several."""

    method: str
    ffn: dict[str, Tensor]
    """Under the anchor's names, in the anchor's shapes and dtype."""
    settings: dict[str, float | list[float]]
    """What the method chose; `weight:NAME` is what that expert counts, as a list if each tensor has its own."""
    judged: float
    """What the judge said of this very network, in bits per byte."""


def merge(method: str, anchor: Networks, experts: Mapping[str, Networks], judge: Judge, *, seed: int = 0) -> Merged:
    """Merge experts of one anchor, settings chosen by the judge alone.

    Args:
        method: one of `METHODS`.
        anchor: the anchor's feed-forward tensors.
        experts: name -> the expert's tensors, of the same names and shapes.
        judge: validation text.
        seed: for the methods that draw, `dare` and `cma-es`.

    Raises:
        ConfigurationError: there is no such method, or the library that computes it is not installed.
        ExpertError: there is no expert, one does not fit the anchor, or nothing merged has a finite score.
    """
    if method not in _BY_NAME:
        raise ConfigurationError(f"saw the merging method {method!r}, wanted one of {', '.join(METHODS)}; name one")
    found = _BY_NAME[method](Problem(anchor=anchor, experts=experts, judge=judge, seed=seed))
    return Merged(method=method, ffn=found.ffn, settings=found.settings, judged=found.judged)
