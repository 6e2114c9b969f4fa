"""One pass of a composite over the next tokens of several sequences, each under its own expert set.

network = Network(model)
outcome = network.run([Row(state=state, tokens=(5, 9), mask=chosen.mask), ...])
outcome.logits, outcome.shares                        # (rows, vocabulary), (rows, experts)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from motet.moe import MotetForCausalLM
from motet.moe.diagnostics import gates_of
from motet.moe.gate import Routing
from motet.serving.engine.attention import Part, attending
from motet.serving.engine.state import Shape, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The next tokens of one sequence, at least one; `mask` says by expert id who takes part."""

    state: State
    tokens: Sequence[int]
    mask: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What a pass found behind each row's last token.

    logits: (rows, vocabulary) float32.
    shares: (rows, experts) float64, the gate weights there, averaged over layers; each row sums to one.
    """

    logits: Tensor
    shares: Tensor


class Network:
    """A composite that is used by passes. Not for several threads at once."""

    def __init__(self, model: MotetForCausalLM) -> None:
        self.model, self.shape = model, Shape.of(model)
        self._masks: dict[tuple[bool, ...], Tensor] = {}

    def new_state(self, expert_set: str) -> State:
        """An empty state of the model's shape."""
        return State(self.shape, expert_set=expert_set)

    @torch.no_grad()
    def run(self, rows: Sequence[Row]) -> Outcome:
        """Puts each row's tokens behind its state and tells what follows them."""
        counts = [len(row.tokens) for row in rows]
        for row, count in zip(rows, counts, strict=True):
            row.state.reserve(count)
        ends = torch.tensor(counts).cumsum(0)
        parts = [Part(row.state, int(end) - count, count) for row, end, count in zip(rows, ends, counts, strict=True)]
        told = self._told(rows, counts)
        last = (ends - 1).to(self.shape.device)
        with attending(self.model), _gate_sums(self.model, last) as sums:
            hidden = self.model.model(
                input_ids=self._column([token for row in rows for token in row.tokens]),
                position_ids=self._column(
                    [row.state.length + at for row, count in zip(rows, counts, strict=True) for at in range(count)]
                ),
                use_cache=False,
                routing=self._routing(rows, counts, told),
                parts=parts,
            ).last_hidden_state  # (tokens, 1, hidden)
            logits = self.model.lm_head(hidden[last, 0]).float()
        for number, (row, count) in enumerate(zip(rows, counts, strict=True)):
            row.state.advance(count, None if told is None else told[number, :count])
        return Outcome(logits=logits, shares=sums.shares())

    def _column(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.shape.device).unsqueeze(1)

    def mask(self, sets: Sequence[tuple[bool, ...]]) -> Tensor:
        """(sets, experts) bool: all that switching from one set to another takes."""
        if len(self._masks) > 4096:  # sets are many where there are many experts
            self._masks.clear()
        found = [self._masks.setdefault(each, torch.tensor(each, device=self.shape.device)) for each in sets]
        return torch.stack(found)

    def _told(self, rows: Sequence[Row], counts: Sequence[int]) -> Tensor | None:
        """What the tokens tell the router, (rows, longest, experts or one more); None where layers' rows decide."""
        router = self.model.token_router
        if router is None:
            return None
        longest = max(counts)
        padded = torch.tensor([[*row.tokens, *[0] * (longest - len(row.tokens))] for row in rows])
        real = torch.arange(longest)[None] < torch.tensor(counts)[:, None]
        before = torch.stack([row.state.last_told() for row in rows])
        found: Tensor = router(padded, expert_mask=self.mask([row.mask for row in rows]), real=real, before=before)
        return found

    def _routing(self, rows: Sequence[Row], counts: Sequence[int], told: Tensor | None) -> Routing:
        """For every token of the pass a row of its own."""
        repeats = torch.tensor(counts, device=self.shape.device)
        mask = self.mask([row.mask for row in rows]).repeat_interleave(repeats, dim=0)  # (tokens, experts)
        router = self.model.token_router
        if told is None or router is None:
            return Routing(expert_mask=mask)
        by_token = torch.cat([told[number, :count] for number, count in enumerate(counts)])
        return router.routing(by_token.unsqueeze(1), mask)


class _GateSums:
    """The gate weights of some tokens, summed over layers."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self._sum = tokens, torch.zeros(())

    def add(self, _module: nn.Module, _inputs: object, weights: Tensor) -> None:
        """A hook: weights (tokens of the pass, experts)."""
        self._sum = self._sum + weights[self.tokens].double().cpu()

    def shares(self) -> Tensor:
        """(tokens, experts), each row scaled to sum to one."""
        return self._sum / self._sum.sum(dim=-1, keepdim=True)


@contextmanager
def _gate_sums(model: MotetForCausalLM, tokens: Tensor) -> Iterator[_GateSums]:
    sums = _GateSums(tokens)
    hooks: list[Any] = [gate.register_forward_hook(sums.add) for gate in gates_of(model)]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
