"""An owner's choice of a rank: what every rank keeps of an expert, in energy, bits per byte and bytes.

Guarantees: every figure is of the factors as their update defines them, encoded and read back; one matrix's difference
is in memory at a time, beside the factors up to the largest rank looked at.

    with file_source(path, anchor) as source:
        curve = squeezed(source, anchor, Goal(energy=0.9), limit=64, settings=settings, score=score)
    curve.rank, curve.factors
    print("\\n".join(curve.lines()))
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from motet.client.lowrank import Expansion
from motet.client.squeeze_sources import SourceExpert
from motet.moe.anchor import Anchor
from motet.moe.lowrank import Factors, read_lowrank_update, write_lowrank_update
from motet.moe.squeeze import Decomposition, decompose, is_randomised, largest_rank
from motet.protocols.codec import CodecSettings, Method
from motet.protocols.documents import Strict
from motet.protocols.errors import ConfigurationError, ExpertError
from motet.protocols.expert_files import factor_specs

Score = Callable[[Mapping[str, Tensor]], float]
"""Bits per byte of held-out text with these networks in place of the anchor's."""
Report = Callable[[float, str], None]
"""Told the share done, 0 to 1, and a line for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """What decides the rank: one of the three, or none, for a curve without a choice.

    rank: the rank itself.
    energy: the smallest rank that keeps so large a share of the squared Frobenius norm of all differences together.
    loss: the smallest rank that loses at most so large a share of the expert's gain over the anchor, in bits per byte.
    """

    rank: int | None = None
    energy: float | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.rank, self.energy, self.loss)) > 1:
            raise ConfigurationError(
                "saw several of rank, energy and loss, wanted one of them to decide; leave out others"
            )
        if self.rank is not None and self.rank < 1:
            raise ConfigurationError(f"saw rank {self.rank}, wanted 1 at least; choose a larger one")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigurationError(f"saw energy {self.energy:g}, wanted a share of 1, such as 0.9; change it")
        if self.loss is not None and not 0 <= self.loss < 1:
            raise ConfigurationError(f"saw loss {self.loss:g}, wanted a share of 1, such as 0.01; change it")

    @property
    def chooses(self) -> bool:
        """Whether anything is chosen."""
        return (self.rank, self.energy, self.loss) != (None, None, None)


class CurvePoint(Strict):
    """One rank of the curve."""

    rank: int
    energy: float
    """The share of the squared Frobenius norm of all differences that is kept."""
    parameters: int
    bytes: int
    """Of the update, routing rows included."""
    bits_per_byte: float | None
    """On the held-out text, quantised; None without text."""
    gain_kept: float | None
    """The share of the expert's gain over the anchor; None without text, or if it gains nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """What every rank keeps, and the one that was chosen."""

    name: str
    method: Method
    parameters: int
    """Of the expert before."""
    anchor: float | None
    expert: float | None
    """Bits per byte of the held-out text with the anchor, and with the expert before; None without text."""
    points: tuple[CurvePoint, ...]
    """By rank, ascending."""
    randomised: int
    """How many matrices were decomposed by random projections."""
    rank: int | None
    """The rank that was chosen; None if nothing was to be."""
    factors: Mapping[str, Factors] = field(repr=False)
    """Of that rank, not encoded; empty without one."""

    def as_json(self) -> dict[str, Any]:
        """Everything but the factors, as a JSON object."""
        return {
            "expert": self.name,
            "method": self.method,
            "parameters": self.parameters,
            "bits_per_byte": {"anchor": self.anchor, "expert": self.expert},
            "randomised": self.randomised,
            "curve": [point.model_dump(mode="json") for point in self.points],
            "rank": self.rank,
        }

    def lines(self) -> Iterator[str]:
        """The curve as a table for people; the chosen rank has a star."""
        yield f"{self.name}, factors encoded as {self.method}"
        yield f"{'rank':>6}{'energy':>9}{'parameters':>14}{'bytes':>14}{'bits/byte':>11}{'gain kept':>11}"
        for each in self.points:
            star = " *" if each.rank == self.rank else ""
            yield f"{each.rank:>6}{each.energy:>9.1%}{each.parameters:>14,}{each.bytes:>14,}{_bits(each)}{star}"
        for name, bits in (("expert", self.expert), ("anchor", self.anchor)):
            if bits is not None:
                yield f"{name:<43}{bits:>11.4f}"
        if self.randomised:
            yield f"{self.randomised} matrices were decomposed by random projections, as large ones are sooner"


def _bits(point: CurvePoint) -> str:
    bits = "-" if point.bits_per_byte is None else f"{point.bits_per_byte:.4f}"
    return f"{bits:>11}{'-' if point.gain_kept is None else f'{point.gain_kept:.1%}':>11}"


def squeezed(
    source: SourceExpert,
    anchor: Anchor,
    goal: Goal,
    *,
    limit: int,
    settings: CodecSettings,
    score: Score | None,
    report: Report = lambda share, line: None,
) -> Curve:
    """Decompose an expert, measure what ranks keep, and choose one.

    Args:
        source: the expert.
        anchor: its anchor.
        goal: what chooses.
        limit: the largest rank that may be chosen, such as the charter's.
        settings: how factors are encoded; a method that low-rank experts may have.
        score: what a network makes of the held-out text; None without text.
        report: told how far it is.

    Raises:
        ConfigurationError: the rank is beyond the limit, or a loss is asked for without text, or of no gain.
        ExpertError: nothing smaller is left to make, or no rank reaches the goal.
        StorageError: the disk is full.
    """
    largest = _largest(source, anchor, goal, limit)
    total = len(anchor.manifest.ffn())

    def on_matrix(done: int) -> None:
        report(0.5 * done / total, f"decomposed {done} of {total} matrices")

    decomposition = decompose(source.parts(anchor), rank=largest, on_matrix=on_matrix)
    with tempfile.TemporaryDirectory(prefix="motet-squeeze-") as folder:
        bench = _Bench(source, anchor, decomposition, settings, score, Path(folder), report)
        rank = _chosen(bench, goal)
        for each in {*_doubling(largest), *([] if rank is None else [rank])}:
            bench.point(each)
    return bench.curve(rank)


def _largest(source: SourceExpert, anchor: Anchor, goal: Goal, limit: int) -> int:
    """The largest rank to look at: within the limit, smaller than what there is, and no more than a matrix has."""
    before, useful = source.rank, largest_rank(anchor.manifest)
    if goal.rank is not None and goal.rank > limit:
        raise ConfigurationError(f"saw rank {goal.rank}, wanted at most {limit}, the limit; choose a smaller one")
    smallest = min(side for spec in anchor.manifest.ffn() for side in spec.shape)
    largest = min(limit, useful if before is None else min(before - 1, smallest))
    if largest < 1 or (goal.rank is not None and goal.rank > largest):
        is_now = "a full expert" if before is None else f"an expert of rank {before} already"
        raise ExpertError(
            f"saw {is_now}, wanted one that rank {goal.rank or 1} makes smaller, at most {largest}; lower it"
        )
    return largest


def _doubling(largest: int) -> list[int]:
    """1, 2, 4, ... and the largest."""
    return [*(1 << power for power in range(largest.bit_length()) if 1 << power < largest), largest]


def _chosen(bench: "_Bench", goal: Goal) -> int | None:
    if goal.loss is not None:
        return _within_loss(bench, goal.loss)
    if goal.energy is not None:
        return bench.decomposition.rank_keeping(goal.energy)
    return goal.rank


def _within_loss(bench: "_Bench", loss: float) -> int:
    """The smallest rank within the budget: ranks are doubled until one is, then the steps between are halved."""
    if bench.expert is None or bench.anchor_bits is None:
        raise ConfigurationError(
            "saw a loss to keep within and no text, wanted held-out text to measure on; give --text"
        )
    if bench.expert >= bench.anchor_bits:
        raise ConfigurationError(
            f"saw an expert that gains nothing ({bench.expert:.4f} bits per byte, the anchor {bench.anchor_bits:.4f}), "
            "wanted a gain to keep; give --rank or --energy"
        )
    below = 0
    for rank in _doubling(bench.decomposition.rank):
        if bench.lost(rank) <= loss:
            break
        below = rank
    else:
        raise ExpertError(
            f"saw {bench.lost(below):.2%} of the gain lost at rank {below}, the largest, wanted at most {loss:.2%}; "
            "allow more loss, or a larger rank"
        )
    while rank - below > 1:
        middle = (rank + below) // 2
        below, rank = (below, middle) if bench.lost(middle) <= loss else (middle, rank)
    return rank


class _Bench:
    """Ranks measured, each once."""

    def __init__(
        self,
        source: SourceExpert,
        anchor: Anchor,
        decomposition: Decomposition,
        settings: CodecSettings,
        score: Score | None,
        folder: Path,
        report: Report,
    ) -> None:
        self.decomposition = decomposition
        self._source, self._anchor, self._settings = source, anchor, settings
        self._score, self._folder, self._report = score, folder, report
        self._points: dict[int, CurvePoint] = {}
        report(0.5, "measuring the expert as it is")
        self.expert = None if score is None else score(source.ffn)
        self.anchor_bits = None if score is None else score(_Own(anchor))

    def lost(self, rank: int) -> float:
        """The share of the expert's gain that a rank loses."""
        kept = self.point(rank).gain_kept
        return math.inf if kept is None else 1 - kept

    def point(self, rank: int) -> CurvePoint:
        """Encode, read back, and score."""
        if rank not in self._points:
            self._report(0.6, f"measuring rank {rank}")
            self._points[rank] = self._measured(rank)
        return self._points[rank]

    def _measured(self, rank: int) -> CurvePoint:
        path, anchor = self._folder / "update", self._anchor
        write_lowrank_update(path, anchor, self.decomposition.factors(rank), self._source.rows, self._settings)
        bits: float | None = None
        if self._score is not None:
            read = read_lowrank_update(path, anchor, name="", contribution="").factors
            bits = self._score(Expansion(anchor, read))
        return CurvePoint(
            rank=rank,
            energy=self.decomposition.energy(rank),
            parameters=sum(math.prod(spec.shape) for spec in factor_specs(anchor.manifest, rank)),
            bytes=path.stat().st_size,
            bits_per_byte=bits,
            gain_kept=self._gain_kept(bits),
        )

    def _gain_kept(self, bits: float | None) -> float | None:
        if bits is None or self.expert is None or self.anchor_bits is None or self.expert >= self.anchor_bits:
            return None
        return (self.anchor_bits - bits) / (self.anchor_bits - self.expert)

    def curve(self, rank: int | None) -> Curve:
        """Everything measured so far."""
        specs, before = self._anchor.manifest.ffn(), self._source.rank
        random = [] if before is not None else [s for s in specs if is_randomised(s.shape, self.decomposition.rank)]
        counted = specs if before is None else factor_specs(self._anchor.manifest, before)
        return Curve(
            name=self._source.name,
            method=self._settings.method,
            parameters=sum(math.prod(spec.shape) for spec in counted),
            anchor=self.anchor_bits,
            expert=self.expert,
            points=tuple(self._points[each] for each in sorted(self._points)),
            randomised=len(random),
            rank=rank,
            factors={} if rank is None else self.decomposition.factors(rank),
        )


class _Own(Mapping[str, Tensor]):
    """The anchor's own networks, read one by one."""

    def __init__(self, anchor: Anchor) -> None:
        self._anchor = anchor

    def __getitem__(self, name: str) -> Tensor:
        return self._anchor.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return (spec.name for spec in self._anchor.manifest.ffn())

    def __len__(self) -> int:
        return len(self._anchor.manifest.ffn())
