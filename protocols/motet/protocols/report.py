"""The report of a federation: what each expert brings, and what switching it off takes away.

report = Report.parse(path.read_bytes())
report.bits_per_byte["composite"]["medicine"]
"\\n".join(report.table()); report.shortfalls()
"""

from collections.abc import Collection, Iterator
from typing import Literal

from pydantic import Field

from motet.protocols.canonical import Digest
from motet.protocols.codec.settings import Method
from motet.protocols.documents import Document, Name, Strict
from motet.protocols.evaluation.page import Evaluation
from motet.protocols.evaluation.shares import subsets
from motet.protocols.expert_sizes import ExpertSize

OPT_OUT_COST = 0.05
"""Bits per byte that leaving an expert out must cost its own domain for the expert to count as worth having."""


class Wire(Strict):
    """How one owner's update travelled, what it took, and what it cost."""

    method: Method
    """The codec's method for the expert's matrices."""
    update_bytes: int = Field(ge=0)
    """The size of the update's file."""
    sent_bytes: int = Field(ge=0)
    """What the owner really sent for it, framing and repeats included."""
    gain_kept: float | None = None
    """The share of the trained expert's gain that the encoded one keeps, as its owner measured; None if not told."""


class CompositeSummary(Strict):
    """The composite that was evaluated."""

    path: str
    stock_path: str | None
    """The checkpoint for plain transformers; None when none was exported."""
    digest: Digest
    members: tuple[Name, ...]
    experts: tuple[ExpertSize, ...] = ()
    """What every expert takes, by expert id, the anchor first; none from releases that do not tell."""


class Sample(Strict):
    """A few generated words with and without one expert."""

    prompt: str
    expert: Name
    with_expert: str
    without_expert: str


class Report(Document):
    """What a run of a federation measured."""

    schema_: Literal["motet.report/1"] = Field("motet.report/1", alias="schema")
    domains: tuple[Name, ...] = Field(min_length=1)
    """The columns: "public" first, then one domain per expert, named like it."""
    bits_per_byte: dict[str, dict[str, float]]
    """Row -> column -> bits per byte; the rows are those of `row_names`."""
    standard_error: dict[str, dict[str, float]] = Field(default_factory=dict)
    """The same shape: bootstrap standard error over documents."""
    wire: dict[Name, Wire]
    seconds: dict[str, float]
    composite: CompositeSummary
    samples: tuple[Sample, ...] = ()
    evaluation: Evaluation | None = None
    """The same with intervals, gap closed, opting out, and whatever else the owners measured; None if untold."""

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of the experts, in the order of their columns."""
        return self.domains[1:]

    def average(self, row: str) -> float:
        """The mean of a row over all columns, in bits per byte."""
        cells = self.bits_per_byte[row]
        return sum(cells[column] for column in self.domains) / len(self.domains)

    def opt_out_cost(self, expert: str) -> float:
        """What leaving `expert` out costs its own domain, in bits per byte."""
        rows = self.bits_per_byte
        return rows[f"composite-without:{expert}"][expert] - rows["composite"][expert]

    def shortfalls(self) -> list[str]:
        """Where the composite is not what it promises: one sentence each, none when all is well."""
        return [*self._against_soup(), *self._opt_outs()]

    def _against_soup(self) -> Iterator[str]:
        if not self.experts:
            return
        composite, soup = self.bits_per_byte["composite"], self.bits_per_byte["soup"]
        for domain in self.experts:
            if composite[domain] >= soup[domain]:
                yield f"on {domain} the composite, {composite[domain]:.3f}, does not beat the soup, {soup[domain]:.3f}"
        if self.average("composite") >= self.average("soup"):
            averages = f"{self.average('composite'):.3f}, does not beat the soup, {self.average('soup'):.3f}"
            yield f"on average the composite, {averages}"

    def _opt_outs(self) -> Iterator[str]:
        for expert in self.experts:
            cost = self.opt_out_cost(expert)
            if cost <= OPT_OUT_COST:
                yield f"leaving {expert} out costs its own domain {cost:.3f} bits per byte, wanted over {OPT_OUT_COST}"

    def wire_table(self) -> list[str]:
        """How each expert's update travelled, as lines of text."""
        width = max((len(name) for name in self.wire), default=0)
        head = f"{'':<{width}}{'method':>13}{'update bytes':>17}{'sent bytes':>17}{'gain kept':>13}"
        return [head, *(self._wire_row(name, width) for name in sorted(self.wire))]

    def _wire_row(self, name: str, width: int) -> str:
        wire = self.wire[name]
        kept = "-" if wire.gain_kept is None else f"{wire.gain_kept:.1%}"
        return f"{name:<{width}}{wire.method:>13}{wire.update_bytes:>17,}{wire.sent_bytes:>17,}{kept:>13}"

    def table(self) -> list[str]:
        """The table of bits per byte as lines of text, then what falls short."""
        names = (*self.experts, *(name for name in self.composite.members if name not in self.experts))
        rows = [row for row in row_names(names) if row in self.bits_per_byte]
        width = max(len(row) for row in rows)
        head = " " * width + "".join(f"{name:>13}" for name in (*self.domains, "average"))
        lines = [head]
        for row in rows:
            cells = [*(self.bits_per_byte[row][column] for column in self.domains), self.average(row)]
            lines.append(f"{row:<{width}}" + "".join(f"{cell:13.3f}" for cell in cells))
        return lines + [f"! {sentence}" for sentence in self.shortfalls()]


def row_names(experts: tuple[str, ...], *, sets: bool = False) -> list[str]:
    """The rows of a report in the order they are shown; without experts there is no soup.

    With `sets` there are as many more as it takes for every expert set to have one, see `row_of_set`.
    """
    return [
        "anchor",
        *(f"expert:{name}" for name in experts),
        *(["soup"] if experts else []),
        "composite",
        *(f"composite-without:{name}" for name in experts),
        *(map(set_row, set_rows(experts)) if sets else ()),
    ]


def set_rows(experts: Collection[str]) -> list[frozenset[str]]:
    """The expert sets that only a row "set:A+B" shows: not none, not all, not all but one.

    Raises:
        DataError: there are more than eight experts.
    """
    return [chosen for chosen in subsets(experts) if 0 < len(chosen) < len(experts) - 1]


def set_row(chosen: Collection[str]) -> str:
    """The row of a composite in which only these experts, and the anchor, may speak."""
    return f"set:{'+'.join(sorted(chosen))}"


def row_of_set(chosen: Collection[str], experts: Collection[str]) -> str:
    """The row that shows an expert set of these experts, whatever it is called."""
    absent = sorted(set(experts) - set(chosen))
    if not absent:
        return "composite"
    if not chosen:
        return "anchor"
    return f"composite-without:{absent[0]}" if len(absent) == 1 else set_row(chosen)
