"""What the gate does with a text, as sums over its scored tokens: as much as may leave the text's owner.

found = Diagnostics(tokens=1200, layers=(LayerSums(...), ...), positions={"composite": Positions(...)})
found.layers[0].mass["medicine"] / found.tokens            # mean gate mass
found.problem({"anchor", "medicine"}, ("anchor", "composite", "expert:medicine"), layers=2)   # None, or what is wrong
"""

from collections.abc import Collection, Iterable
from typing import Annotated, Self

from pydantic import Field, model_validator

from motet.protocols.documents import Name, Strict
from motet.protocols.evaluation.positions import Positions
from motet.protocols.evaluation.reliability import Histogram
from motet.protocols.evaluation.sums import Count

MAX_LAYERS = 512


class LayerSums(Strict):
    """One layer's gate, summed over the scored tokens of a text."""

    mass: dict[Name, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    """Expert, the anchor among them -> summed gate weight."""
    entropy: float = Field(ge=0)
    """Summed entropy of the gate weights, nats."""
    histograms: dict[Name, Histogram]
    """Expert -> how its weight is spread over the tokens."""

    def exceeds(self, tokens: int) -> bool:
        """Whether a sum is more than weights from 0 to 1 of so many tokens can make; an entropy has 1/e an expert."""
        most = tokens * (1 + 1e-3)  # weights may be of low precision
        return max(self.mass.values()) > most or self.entropy > most * len(self.mass)


class Diagnostics(Strict):
    """What a composite's gate did with a text, and where in the text the loss lies."""

    tokens: Count = Field(ge=1)
    """Scored tokens."""
    layers: tuple[LayerSums, ...] = Field(max_length=MAX_LAYERS)
    positions: dict[str, Positions] = Field(default_factory=dict, max_length=16)
    """Row of the report ("anchor", "expert:NAME" of the owner's own, "composite") -> loss by position."""

    @model_validator(mode="after")
    def _sums_are_over_the_same_tokens(self) -> Self:
        counts = [sum(histogram.tokens) for layer in self.layers for histogram in layer.histograms.values()]
        counts += [sum(positions.tokens) for positions in self.positions.values()]
        if wrong := [count for count in counts if count != self.tokens]:
            raise ValueError(f"a sum is over {wrong[0]} tokens, wanted {self.tokens} as everywhere")
        if any(layer.mass.keys() != layer.histograms.keys() for layer in self.layers):
            raise ValueError("wanted a sum of mass and a histogram for every expert of a layer")
        if any(layer.exceeds(self.tokens) for layer in self.layers):
            raise ValueError(
                f"a layer's mass or entropy is more than {self.tokens} tokens can have; wanted at most that"
            )
        return self

    def problem(self, experts: Collection[str], rows: Collection[str], *, layers: int) -> str | None:
        """What does not fit a composite of these experts, the anchor among them, rows and depth; None if all does."""
        if len(self.layers) != layers:
            return f"gates of {len(self.layers)} layers, wanted {layers} as the anchor has"
        for number, layer in enumerate(self.layers):
            if layer.mass.keys() != set(experts):
                return f"layer {number} with gate mass for {', '.join(layer.mass)}, wanted {', '.join(sorted(experts))}"
        if not self.positions:
            return f"no loss by position, wanted that of {', '.join(rows)}"
        strange = sorted(set(self.positions) - set(rows))
        return f"loss by position of {strange[0]}, wanted rows among {', '.join(rows)}" if strange else None


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All of them as one, bin by bin; at least one."""
    given = list(histograms)
    return Histogram(
        tokens=tuple(map(sum, zip(*(one.tokens for one in given), strict=True))),
        mass=tuple(map(sum, zip(*(one.mass for one in given), strict=True))),
    )
