"""What a benchmark of the codec reports: one row for each method, path and density.

Report(rows=(Row(method="ternary", path="native", density=0.05, ...),), params=50_000_000)
"""

from typing import Literal

from pydantic import Field

from motet.protocols.codec import METHODS
from motet.protocols.documents import Strict

Path_ = Literal["numpy", "native"]

YARDSTICKS = ("zstd-3", "safetensors", "2-bit")
"""What others would do with the same values. zstd-3: with a density, of the ternary update as dense bf16, its values 0
and plus or minus a scale; without, of the differences themselves. 2-bit: four ternary values a byte, as they are."""
BALANCED = "ternary-balanced"
"""ternary with rows that compete, as owners have it by default: two more passes over the input."""
BALANCE = 0.9
MEASURED = (METHODS[0], BALANCED, *METHODS[1:], *YARDSTICKS)
DENSITIES = (0.01, 0.05, 0.10, 0.20, 0.25, 0.35, 0.40, 0.50)


class Case(Strict):
    """What a row is about."""

    method: str
    path: Path_
    density: float | None = Field(None, gt=0, le=1)
    """The share of values kept; None where all are."""

    def __str__(self) -> str:
        share = "" if self.density is None else f" {100 * self.density:g} %"
        return f"{self.method}{share}, {self.path}"


class Row(Case):
    """One measurement."""

    bits_per_parameter: float
    """The file's size, everything included, over the parameters."""
    bound: float | None
    """H(k) + k bits per parameter at the density k that was really kept."""
    over_bound_percent: float | None
    encode_mb_s: float
    """Megabytes (10^6) of bf16 input a second: reading it, and writing the file, fsync included."""
    decode_mb_s: float
    """The same for reading the update and the anchor, decoding, and making every value of the expert."""
    encode_vs_sha256: float
    """The same over the speed of SHA-256 on one thread over the same input, reading it not counted."""
    decode_vs_sha256: float
    extra_rss_mb: float
    """How many megabytes the process grew at most, over what it had after a small update went both ways."""


class Report(Strict):
    """All rows of a run."""

    rows: tuple[Row, ...]
    params: int


def cases(methods: tuple[str, ...], *, native: bool) -> list[Case]:
    """What is measured, in the order of the report: ternary density by density, numpy and native side by side."""
    paths: tuple[Path_, ...] = ("numpy", "native") if native else ("numpy",)
    found = []
    for method in (each for each in MEASURED if each in methods):
        if method == "ternary":
            found += [Case(method=method, path=path, density=density) for density in DENSITIES for path in paths]
        elif method == BALANCED:
            found += [Case(method=method, path=path, density=density) for density in (0.05, 0.20) for path in paths]
        elif method == "zstd-3":
            found += [Case(method=method, path="numpy", density=density) for density in (None, *DENSITIES)]
        elif method == "2-bit":
            found.append(Case(method=method, path="numpy", density=0.2))
        else:  # only levels has loops that are compiled
            found.append(Case(method=method, path=paths[-1] if method == "levels" else "numpy"))
    return found
