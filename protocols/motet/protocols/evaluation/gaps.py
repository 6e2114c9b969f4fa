"""Gap closed: how far a system comes on the way from the anchor to a domain's own specialist.

closed = gap_closed(matrix(measured))                                     # against the system "specialist"
closed = gap_closed(cells, specialist={"medicine": cells["expert:medicine"]["medicine"]})
summary(closed["composite"])                                              # Gap(mean=0.93, worst=0.88)
"""

from collections.abc import Mapping
from dataclasses import dataclass

from motet.protocols.errors import DataError
from motet.protocols.evaluation.losses import AVERAGE, PUBLIC

Fractions = dict[str, float | None]
"""Closed domain -> fraction; None where it is not defined."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The gap closed over all domains where it is defined."""

    mean: float
    worst: float


def gap_closed(
    matrix: Mapping[str, Mapping[str, float]],
    *,
    anchor: str = "anchor",
    specialist: str | Mapping[str, float] = "specialist",
) -> dict[str, Fractions]:
    """System -> closed domain -> (anchor - system) / (anchor - specialist): 0 as the anchor, 1 as the specialist.

    A domain whose specialist gains nothing over the anchor has no gap to close: None, for every system.

    Args:
        matrix: system -> domain -> bits per byte.
        anchor: the system at 0.
        specialist: the system at 1, or its bits per byte domain by domain.

    Raises:
        DataError: anchor or specialist were not measured on a closed domain.
    """
    domains = [domain for domain in matrix.get(anchor, {}) if domain not in (PUBLIC, AVERAGE)]
    ends = matrix.get(specialist, {}) if isinstance(specialist, str) else specialist
    if not domains or (missing := [domain for domain in domains if domain not in ends]):
        what = f"no specialist's figure for {missing[0]}" if domains else f"no closed domain measured under {anchor!r}"
        raise DataError(f"saw {what}; wanted anchor and specialist measured on every closed domain")
    gaps = {domain: matrix[anchor][domain] - ends[domain] for domain in domains}
    return {
        system: {
            domain: (matrix[anchor][domain] - cells[domain]) / gaps[domain] if gaps[domain] > 0 else None
            for domain in domains
            if domain in cells
        }
        for system, cells in matrix.items()
    }


def summary(fractions: Mapping[str, float | None]) -> Gap | None:
    """The mean and the worst of one system's fractions; None when none is defined."""
    defined = [fraction for fraction in fractions.values() if fraction is not None]
    return Gap(mean=sum(defined) / len(defined), worst=min(defined)) if defined else None
