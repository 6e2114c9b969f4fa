"""What the gates of a composite do with a text: sums, taken while its windows are scored anyway.

Guarantees: what is told is sums over at least 10 scored tokens each (`LEAST_TOKENS`), never a token's own figure, and
nothing of a text that has fewer; the model is left as it was.

    watch = Watch(model.config.names)
    with watch.gates(model):
        score_windows(model, windows, watch=watch)
    watch.tokens, watch.layers(), watch.positions()
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from motet.protocols.evaluation.diagnosis import LayerSums
from motet.protocols.evaluation.positions import MAX_BUCKETS, Positions
from motet.protocols.evaluation.reliability import BINS, Histogram
from motet.protocols.evaluation.sums import LEAST_TOKENS

DIGITS = 6
"""Decimal places that sums are rounded to; the arithmetic promises no more."""


class Watch:
    """Sums over the batches that it is told of, one after the other."""

    def __init__(self, experts: Sequence[str] = ()) -> None:
        """`experts` are named in the order of the gates' columns; a dense model has none."""
        self.tokens = 0
        self._experts = tuple(experts)
        self._by_position = torch.zeros(2, MAX_BUCKETS, dtype=torch.float64)  # nats, tokens
        self._weights: dict[int, Tensor] = {}  # layer -> what its gate gave last: (batch * seq, experts)
        self._sums: dict[int, _GateSums] = {}

    @contextmanager
    def gates(self, model: nn.Module) -> Iterator[None]:
        """Look at the gates of `model`, a composite, until the end of the block."""

        def keep(layer: int) -> Any:  # noqa: ANN401 - a hook
            def hook(_module: nn.Module, _inputs: object, weights: Tensor) -> None:
                self._weights[layer] = weights.detach()

            return hook

        hooks = [gate.register_forward_hook(keep(layer)) for layer, gate in enumerate(gates_of(model))]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._weights.clear()

    def note(self, nats: Tensor, scored: Tensor) -> None:
        """A batch: the loss of each token, float64 on the CPU, and whether it is scored; both (batch, seq)."""
        buckets = buckets_of(nats.shape[1]).expand_as(nats)[scored]
        sums = torch.stack([nats[scored], torch.ones_like(nats[scored])])
        self._by_position.index_add_(1, buckets, sums)
        self.tokens += int(scored.sum())
        for layer, weights in self._weights.items():
            self._sums.setdefault(layer, _GateSums(len(self._experts))).add(weights.cpu().double()[scored.flatten()])

    def positions(self) -> Positions:
        """The loss by position in the prefix of the window; a bucket of few tokens joins one beside it."""
        nats, tokens = self._by_position.tolist() if self.tokens >= LEAST_TOKENS else ([], [])
        used = max((place + 1 for place, count in enumerate(tokens) if count), default=0)
        return Positions(
            nats=tuple(round(value, DIGITS) for value in nats[:used]),
            tokens=tuple(int(count) for count in tokens[:used]),
        ).coarse()

    def layers(self) -> tuple[LayerSums, ...]:
        """What the gates did, layer by layer, bins of few tokens joined; nothing if none was looked at."""
        if self.tokens < LEAST_TOKENS:
            return ()
        return tuple(self._sums[layer].named(self._experts) for layer in sorted(self._sums))


class _GateSums:
    """One layer's sums, expert by expert."""

    def __init__(self, experts: int) -> None:
        self.mass = torch.zeros(experts, dtype=torch.float64)
        self.entropy = 0.0
        self.tokens = torch.zeros(experts * BINS, dtype=torch.float64)
        self.bins = torch.zeros(experts * BINS, dtype=torch.float64)

    def add(self, weights: Tensor) -> None:
        """weights: (tokens, experts) float64."""
        self.mass += weights.sum(dim=0)
        self.entropy += float(torch.special.entr(weights).sum())
        place = (weights * BINS).long().clamp(0, BINS - 1) + BINS * torch.arange(weights.shape[1])
        self.tokens += torch.bincount(place.flatten(), minlength=len(self.tokens))
        self.bins += torch.bincount(place.flatten(), weights.flatten(), minlength=len(self.bins))

    def named(self, experts: Sequence[str]) -> LayerSums:
        """The sums under the experts' names."""
        histograms = {}
        for number, name in enumerate(experts):
            own = slice(number * BINS, (number + 1) * BINS)
            histograms[name] = Histogram(
                tokens=tuple(int(count) for count in self.tokens[own].tolist()),
                mass=tuple(round(mass, DIGITS) for mass in self.bins[own].tolist()),
            ).coarse()
        mass = {name: round(float(value), DIGITS) for name, value in zip(experts, self.mass, strict=True)}
        return LayerSums(mass=mass, entropy=round(max(0.0, self.entropy), DIGITS), histograms=histograms)


def gates_of(model: nn.Module) -> list[nn.Module]:
    """The module in each layer whose forward gives the gate's weights, (batch * seq, experts)."""
    layers: Any = model.get_submodule("model.layers")
    return [layer.mlp.gate for layer in layers]


def buckets_of(length: int) -> Tensor:
    """The bucket of each position: 0 and 1, 2 and 3, 4 to 7, 8 to 15, ...: (length,)."""
    return torch.tensor([max(0, position.bit_length() - 1) for position in range(length)])
