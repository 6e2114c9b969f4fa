"""What `motet bench serve` tells. Needs no torch.

report = Report.of(settings, parameters, runs, switch)
report.as_json(), report.lines()
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Self

from pydantic import Field

from motet.protocols.documents import Strict

AIMS = {
    "throughput_vs_generate": ">= 1.0",
    "mixed_sets_overhead_percent": "<= 3",
    "batching_speedup_16": ">= 4",
    "switch_ms": "<= 1",
}


class Settings(Strict):
    """What is measured: a random composite, and how much of it."""

    full: int = Field(2, ge=1)
    """Full experts."""
    lowrank: int = Field(7, ge=0)
    rank: int = Field(16, ge=1)
    hidden_size: int = 512
    intermediate_size: int = 2048
    layers: int = 8
    heads: int = 8
    vocabulary_size: int = 8192
    prompt: int = Field(32, ge=1)
    """Tokens of every prompt."""
    generated: int = Field(24, ge=2)
    """Tokens generated for each."""
    rounds: int = Field(7, ge=1)


class Run(Strict):
    """One round, in tokens a second, also of processor time, and the seconds to the first token of each request."""

    speeds: dict[str, float]
    by_processor: dict[str, float]
    """Tokens for each second of this process's processor time: steadier where a machine has other work."""
    first: dict[str, tuple[float, ...]]

    def ratio(self, one: str, other: str) -> float:
        """How much faster one was than the other in this round."""
        return self.speeds[one] / self.speeds[other]


class Report(Strict):
    """Medians over the rounds: of ratios, since the machine may be faster in one round than in the next."""

    settings: Settings
    parameters: dict[str, int]
    """Of the composite, and of its stock export."""
    runs: tuple[Run, ...]
    switch: tuple[float, ...]
    """Seconds of each switch."""

    @classmethod
    def of(
        cls, settings: Settings, parameters: Mapping[str, int], runs: Sequence[Run], switch: Sequence[float]
    ) -> Self:
        """Of what was measured."""
        return cls(settings=settings, parameters=dict(parameters), runs=tuple(runs), switch=tuple(switch))

    def ratio(self, one: str, other: str) -> float:
        """The median over the rounds."""
        return median(run.ratio(one, other) for run in self.runs)

    def overhead(self, number: int) -> float:
        """What different sets among `number` requests cost against the one set of all experts, in %.

        Either batch reads the weights of all experts.
        """
        return 100 * (self.ratio(f"server-{number}", f"mixed-{number}") - 1)

    def overhead_of_equal_size(self, number: int) -> float:
        """The same against sets of that very size that are all the same, so that their batch reads fewer experts."""
        return 100 * (self.ratio(f"same-{number}", f"mixed-{number}") - 1)

    def overhead_by_processor(self, number: int) -> float:
        """`overhead_of_equal_size` in processor time."""
        same, mixed = f"same-{number}", f"mixed-{number}"
        return 100 * (median(run.by_processor[same] / run.by_processor[mixed] for run in self.runs) - 1)

    def as_json(self) -> dict[str, Any]:
        """As the command prints it."""
        first = {
            name: 1e3 * median(seconds for run in self.runs for seconds in run.first[name])
            for name in self.runs[0].first
        }
        return {
            "throughput_vs_generate": round(self.ratio("server-4", "generate-4"), 3),
            "mixed_sets_overhead_percent": round(max(map(self.overhead, (4, 16))), 2),
            "mixed_sets_overhead_percent_of_equal_size": round(max(map(self.overhead_of_equal_size, (4, 16))), 2),
            "batching_speedup_16": round(self.ratio("server-16", "server-1"), 2),
            "switch_ms": round(1e3 * median(self.switch), 4),
            "ttft_ms": {name.removeprefix("server-"): round(value, 1) for name, value in first.items()},
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        settings, found = self.settings, self.as_json()
        yield (
            f"{self.parameters['composite']:,} parameters: {settings.full} full and {settings.lowrank} low-rank "
            f"experts of rank {settings.rank}; {self.parameters['stock']:,} in the stock export"
        )
        yield (
            f"{settings.prompt} tokens read and {settings.generated} generated per request; "
            f"medians of {len(self.runs)} interleaved runs"
        )
        for name in self.runs[0].speeds:
            speeds = [run.speeds[name] for run in self.runs]
            yield f"{name:12} {median(speeds):8.1f} tokens/s  ({min(speeds):.1f} to {max(speeds):.1f})"
        for number in (4, 16):
            yield (
                f"mixed sets   {self.overhead(number):+.1f} % at {number} requests against one set of all experts; "
                f"against one of equal size {self.overhead_of_equal_size(number):+.1f} %, in processor time "
                f"{self.overhead_by_processor(number):+.1f} %"
            )
        for name, aim in AIMS.items():
            yield f"{name:28} {found[name]:>9}   aim {aim}"
        yield "ttft_ms      " + ", ".join(f"{value} at {name}" for name, value in found["ttft_ms"].items())
