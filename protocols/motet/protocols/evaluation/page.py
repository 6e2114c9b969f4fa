"""The page: everything an evaluation found, as one value, in JSON, Markdown and HTML.

Guarantees: a section that has no figures is left out; the HTML is one file that fetches nothing and needs no scripts,
and every figure in it is also printed as text.

    page = Evaluation(title="Three owners", systems=matrix(measured), intervals=intervals(measured))
    path.write_text(page.html(), encoding="utf-8")
    page.markdown(); page.as_json()
"""

from collections.abc import Iterable, Mapping
from typing import Literal, Self

from pydantic import Field

from motet.protocols.documents import Document, Strict
from motet.protocols.evaluation.bootstrap import Interval
from motet.protocols.evaluation.positions import Bucket
from motet.protocols.evaluation.reliability import Reliability


class Comparison(Strict):
    """How one system differs from another, paired."""

    a: str
    b: str
    relative: dict[str, tuple[float, float, float]]
    """Domain or "average" -> a / b - 1: as measured, low, high; negative is better for a."""

    @classmethod
    def of(cls, a: str, b: str, found: Mapping[str, Interval]) -> Self:
        """From what `difference` gives, relative."""
        return cls(a=a, b=b, relative={column: (one.mean, one.low, one.high) for column, one in found.items()})


class OptOut(Strict):
    """What leaving one expert out costs."""

    change: dict[str, float]
    """Domain -> without / with - 1: the loss on its own domain, the harm on all others."""
    own_over_anchor: float | None
    """Its own domain without it, over the anchor - 1; None if that was not measured."""


class RankPoint(Strict):
    """What a composite of low-rank experts is worth, or of full ones, and what one of them takes."""

    system: str
    rank: int | None = Field(None, ge=1)
    """None for full experts."""
    parameters: int = Field(ge=1)
    """Of one expert, all layers."""
    share: float = Field(gt=0)
    """The same over those of a full one."""
    average: float
    """Bits per byte over all domains."""
    gap_mean: float | None = None
    """Gap closed, the mean over closed domains; None where it is not defined."""
    gap_worst: float | None = None
    """The worst of these."""
    gain_kept: float | None = None
    """(anchor - system) / (anchor - full) of averages; None where full experts gain nothing."""


class Evaluation(Document):
    """What an evaluation found; every section may be missing. Figures are bits per byte unless it is said otherwise."""

    schema_: Literal["motet.evaluation-page/1"] = Field("motet.evaluation-page/1", alias="schema")
    title: str = "Evaluation"
    notes: tuple[str, ...] = ()
    """What the reader must know: how it was measured, where it falls short; a sentence each."""
    systems: dict[str, dict[str, float]] = Field(default_factory=dict)
    """System -> domain or "average" -> bits per byte, as `matrix` gives it."""
    intervals: dict[str, dict[str, tuple[float, float]]] = Field(default_factory=dict)
    """The same shape: (low, high)."""
    gap_closed: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """System -> closed domain -> fraction, as `gap_closed` gives it."""
    ranks: tuple[RankPoint, ...] = ()
    """Composites of low-rank experts, way by way and by rank, and the one of full ones."""
    comparisons: tuple[Comparison, ...] = ()
    opt_out: dict[str, OptOut] = Field(default_factory=dict)
    """Expert -> what leaving it out costs."""
    routing: dict[str, tuple[dict[str, float], ...]] = Field(default_factory=dict)
    """Domain -> layer by layer: expert -> mean gate mass."""
    entropy: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Domain -> layer by layer: the gate's mean entropy in nats."""
    calibration: dict[str, Reliability] = Field(default_factory=dict)
    """Expert -> the reliability of its gate, all layers together."""
    calibration_error: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Expert -> layer by layer: expected calibration error."""
    positions: dict[str, dict[str, tuple[Bucket, ...]]] = Field(default_factory=dict)
    """Domain -> system -> loss by position in the prefix."""
    shapley: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Expert -> domain or "average" -> its share of what all experts save, bits per byte."""
    leave_one_out: dict[str, dict[str, float]] = Field(default_factory=dict)
    """The same shape: what is lost when it alone is left out."""
    seeds: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, ge=0)

    def lines(self) -> list[str]:
        """The sections beside the matrix of bits per byte, as lines for a terminal."""
        from motet.protocols.evaluation.writing import lines

        return lines(self)

    def markdown(self) -> str:
        """The page as Markdown: the tables, without figures."""
        from motet.protocols.evaluation.writing import markdown

        return markdown(self)

    def html(self) -> str:
        """The page as one self-contained HTML file."""
        from motet.protocols.evaluation.writing import html

        return html(self)


def opt_outs(
    matrix: Mapping[str, Mapping[str, float]], *, composite: str = "composite", experts: Iterable[str] | None = None
) -> dict[str, OptOut]:
    """What leaving each expert out costs, from the rows "COMPOSITE-without:NAME" beside COMPOSITE and "anchor".

    `experts` are those to look at; None takes all that have such a row.
    """
    prefix = f"{composite}-without:"
    names = [row.removeprefix(prefix) for row in matrix if row.startswith(prefix)]
    found = {}
    for name in names if experts is None else experts:
        whole, without, anchor = matrix[composite], matrix[prefix + name], matrix.get("anchor", {})
        own = without[name] / anchor[name] - 1 if name in without and name in anchor else None
        change = {domain: without[domain] / whole[domain] - 1 for domain in whole if domain in without}
        found[name] = OptOut(change=change, own_over_anchor=own)
    return found
