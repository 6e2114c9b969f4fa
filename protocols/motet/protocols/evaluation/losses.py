"""Losses document by document, and the matrix of bits per byte that they make.

Guarantees: every system is compared on the same documents, or not at all; an average is over all domains, public text
included, each domain counting the same however much of it there is.

    measured = {"anchor": {"public": DocumentLosses(nats, sizes), "medicine": ...}, "soup": {...}}
    matrix(measured)["soup"]["average"]                     # bits per byte
    matrix([measured_with_seed_0, measured_with_seed_1])    # the mean over seeds
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from motet.protocols.errors import DataError

AVERAGE = "average"
"""The column that is the mean of all others."""
PUBLIC = "public"
"""The domain that belongs to nobody."""


@dataclass(frozen=True, slots=True, eq=False)
class DocumentLosses:
    """What a system needs to write each document of a domain down.

    Attributes:
        nats: summed negative log-likelihood, natural logarithm: (documents,).
        bytes: UTF-8 bytes: (documents,).
    """

    nats: NDArray[np.float64]
    bytes: NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = self.nats.shape, self.bytes.shape
        if len(shapes[0]) != 1 or shapes[0] != shapes[1] or shapes[0] == (0,):
            raise DataError(f"saw losses of the shapes {shapes}, wanted a number and a size for each of some documents")
        if not np.isfinite(self.nats).all() or (self.bytes <= 0).any():
            raise DataError("saw a loss that is not finite or a document without bytes; leave such documents out")


Measured = Mapping[str, Mapping[str, DocumentLosses]]
"""System -> domain -> losses; "public" is a domain."""
Seeds = Measured | Sequence[Measured]
"""What one run measured, or several that differ in their seed only."""


def bits_per_byte(losses: DocumentLosses) -> float:
    """Bits per UTF-8 byte over all documents together."""
    return float(losses.nats.sum() / losses.bytes.sum() / math.log(2))


def matrix(measured: Seeds) -> dict[str, dict[str, float]]:
    """System -> domain -> bits per byte, with the column "average"; the mean over seeds if there are several.

    A system that was not measured on every domain has no average.

    Raises:
        DataError: nothing was measured, or systems or seeds were measured on different documents.
    """
    runs = runs_of(measured)
    domains = domains_of(runs)
    found: dict[str, dict[str, float]] = {}
    for system, cells in runs[0].items():
        row = {
            domain: float(np.mean([bits_per_byte(run[system][domain]) for run in runs]))
            for domain in domains
            if domain in cells
        }
        found[system] = row | ({AVERAGE: float(np.mean(list(row.values())))} if len(row) == len(domains) else {})
    return found


def runs_of(measured: Seeds) -> list[Measured]:
    """The runs, one per seed, once it is sure that they can be compared.

    Raises:
        DataError: as `matrix`.
    """
    runs = [measured] if isinstance(measured, Mapping) else list(measured)
    if not runs or not all(run and all(run.values()) for run in runs):
        raise DataError("saw no measurement; wanted at least one system, measured on at least one domain")
    shape = _shape(runs[0])
    for run in runs[1:]:
        if _shape(run) != shape:
            raise DataError("saw seeds with different systems or domains; run the missing ones, or leave them out")
    _require_same_documents(runs)
    return runs


def domains_of(runs: Sequence[Measured]) -> list[str]:
    """Every domain that some system was measured on, in the order in which they come."""
    return list(dict.fromkeys(domain for cells in runs[0].values() for domain in cells))


def _shape(run: Measured) -> dict[str, set[str]]:
    return {system: set(cells) for system, cells in run.items()}


def _require_same_documents(runs: Sequence[Measured]) -> None:
    first: dict[str, NDArray[np.int64]] = {}
    for run in runs:
        for system, cells in run.items():
            for domain, losses in cells.items():
                if domain == AVERAGE:
                    raise DataError(f"saw a domain called '{AVERAGE}', which is a column of its own; rename it")
                if not np.array_equal(first.setdefault(domain, losses.bytes), losses.bytes):
                    raise DataError(
                        f"saw {system} measured on other documents of {domain} than the systems or seeds before it; "
                        "measure all on the same ones"
                    )
