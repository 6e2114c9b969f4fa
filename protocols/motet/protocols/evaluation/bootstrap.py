"""Intervals: how much of a figure is the luck of the documents, and of the seeds.

Guarantees: one draw of a domain's documents serves every system and every seed, and one draw of seeds every domain, so
that differences are paired; the same arguments give the same figures; a domain's draws depend on its name, not on which
others there are.

    intervals(measured)["soup"]["average"]                                  # (low, high)
    difference(measured, "composite", "soup")["average"].includes_zero      # relative: composite / soup - 1
    pool([seed_0, seed_1, seed_2])["composite"]["medicine"].mean
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from motet.protocols.errors import DataError
from motet.protocols.evaluation.losses import AVERAGE, Measured, Seeds, domains_of, matrix, runs_of

Draws = dict[str, dict[str, NDArray[np.float64]]]
"""System -> domain or "average" -> bits per byte in each resample: (resamples,)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure as measured, and where it lies in most resamples."""

    mean: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Whether the figure may as well be nought."""
        return self.low <= 0 <= self.high


def intervals(
    measured: Seeds, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, tuple[float, float]]]:
    """System -> domain or "average" -> (low, high) in bits per byte: percentiles of the document bootstrap.

    Given several seeds, seeds are drawn as well, see `draws`.

    Raises:
        DataError: as `matrix`.
    """
    found = draws(measured, resamples=resamples, seed=seed)
    return {system: {domain: _ends(row[domain], level) for domain in row} for system, row in found.items()}


def pool(
    seeds: Sequence[Measured], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, Interval]]:
    """System -> domain or "average" -> the mean over seeds in bits per byte, with an interval over seeds and documents.

    Raises:
        DataError: as `matrix`.
    """
    means, ends = matrix(seeds), intervals(seeds, resamples=resamples, seed=seed, level=level)
    return {
        system: {domain: Interval(mean, *ends[system][domain]) for domain, mean in row.items()}
        for system, row in means.items()
    }


def difference(
    measured: Seeds,
    a: str,
    b: str,
    *,
    relative: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Domain or "average" -> how `a` differs from `b`, paired: a / b - 1, or a - b in bits per byte.

    Negative is better. The relative difference of averages is that of the two averages, not the average of differences.

    Raises:
        DataError: as `matrix`, or there is no such system.
    """
    means, found = matrix(measured), draws(measured, resamples=resamples, seed=seed)
    if unknown := [system for system in (a, b) if system not in found]:
        raise DataError(f"saw no measurement of {unknown[0]}, wanted one of {', '.join(found)}")
    compared = {}
    for column in (column for column in means[a] if column in means[b]):
        ours, theirs = found[a][column], found[b][column]
        mean = means[a][column] / means[b][column] - 1 if relative else means[a][column] - means[b][column]
        compared[column] = Interval(mean, *_ends(ours / theirs - 1 if relative else ours - theirs, level))
    return compared


def draws(measured: Seeds, *, resamples: int = 1000, seed: int = 0) -> Draws:
    """What every resample gives, to build intervals of anything from; the same resample lies at the same place.

    Documents are drawn with replacement, and seeds too if there are several: both at once, since all seeds are measured
    on the same documents (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007). Seeds are so few that
    drawing makes them look more alike than they are; the deviation of a draw is widened by sqrt(n / (n - 1)) for it
    (Hesterberg, "What teachers should know about the bootstrap", The American Statistician 2015).

    Raises:
        DataError: as `matrix`.
    """
    runs = runs_of(measured)
    domains = domains_of(runs)
    chosen = np.random.default_rng(seed).integers(len(runs), size=(resamples, len(runs)))
    found: Draws = {system: {} for system in runs[0]}
    for domain in domains:
        systems = [system for system, cells in runs[0].items() if domain in cells]
        for system, values in zip(systems, _domain_draws(runs, systems, domain, chosen, seed), strict=True):
            found[system][domain] = values
    for row in found.values():
        if len(row) == len(domains):
            row[AVERAGE] = np.mean([row[domain] for domain in domains], axis=0)
    return found


def _domain_draws(
    runs: Sequence[Measured], systems: Sequence[str], domain: str, chosen: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    """Bits per byte, (systems, resamples); `chosen` (resamples, seeds) are the runs that each resample draws."""
    generator = np.random.default_rng([seed, zlib.crc32(domain.encode())])
    nats = np.stack([[run[system][domain].nats for system in systems] for run in runs])  # (seeds, systems, documents)
    sizes, widened = runs[0][systems[0]][domain].bytes, math.sqrt(len(runs) / max(1, len(runs) - 1))
    found = np.empty((len(systems), len(chosen)))
    for resample, drawn in enumerate(chosen):  # one after the other: all at once would take gigabytes
        counts = np.bincount(generator.integers(len(sizes), size=len(sizes)), minlength=len(sizes))
        rates = nats @ counts / (sizes @ counts) / math.log(2)  # (seeds, systems)
        mean = rates.mean(axis=0)
        found[:, resample] = mean + widened * (rates[drawn].mean(axis=0) - mean)
    return found


def _ends(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
