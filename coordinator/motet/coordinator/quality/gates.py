"""Gates for experiments: other ways to make weights of scores than those a charter can name.

Guarantees that all of them see the same scores and the same experts, so that what differs is the gate alone.

    with probed(model, Probe(rows="own", evidence="leak", decay=0.9, gain=0.4)):
        model(input_ids=ids, use_cache=False)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from motet.moe.composite import MotetForCausalLM
from motet.moe.evidence import Evidence
from motet.moe.gate import Routing
from motet.protocols.documents import Strict

Rows = Literal["own", "lda", "tokens", "shuffled", "random"]


class Probe(Strict):
    """How scores become weights. What an evidence has no use for is ignored."""

    rows: Rows = "own"
    """Where scores come from: the layers' rows as the experts bring them or in closed form; evidence by token id, also
    with the owners' tables exchanged or replaced by noise of the same spread."""
    evidence: Literal["token", "leak", "step", "average"] = "token"
    """This token's scores alone; L_t = decay L_(t-1) + r_t; a hidden Markov model's forward step; the prefix's mean."""
    gain: float = 1.0
    """What the evidence is multiplied with before the softmax; not for `step`."""
    decay: float = 0.95
    stay: float = 0.99
    temperature: float = 4.0
    prior: float = 0.0
    """Log prior of the anchor, in nats over every expert's."""


class ProbeGate(nn.Module):
    """A layer's gate under a probe; with a table the scores are looked up, and every layer weighs alike."""

    def __init__(self, probe: Probe, table: Tensor | None) -> None:
        super().__init__()
        self.probe, self.table = probe, table
        self.ids: Tensor | None = None

    def forward(self, scores: Tensor | None, routing: Routing) -> Tensor:
        """scores (batch, seq, experts) -> weights (batch * seq, experts)."""
        if self.table is not None and self.ids is not None:
            scores = self.table[:, self.ids].movedim(0, -1)
        assert scores is not None  # noqa: S101 - the model has no filter of its own
        return weights_of(scores, self.probe).flatten(0, 1)


def weights_of(scores: Tensor, probe: Probe) -> Tensor:
    """Weights (batch, seq, experts) of scores of that shape, whose first expert is the anchor."""
    prior = torch.zeros(scores.shape[-1])
    prior[0] = probe.prior
    if probe.evidence == "step":
        return Evidence(stay=probe.stay, temperature=probe.temperature).filter(scores, prior)
    told = scores
    if probe.evidence != "token":
        told = scores.clone()
        told[:, 0] = 0.0  # in front of a text's first token there is nothing to tell
    if probe.evidence == "leak":
        told = _leaking(told, probe.decay)
    elif probe.evidence == "average":
        told = told.cumsum(dim=1) / torch.arange(1, told.shape[1] + 1)[:, None]
    return (probe.gain * told + prior).softmax(dim=-1)


def _leaking(scores: Tensor, decay: float) -> Tensor:
    total, found = torch.zeros_like(scores[:, 0]), []
    for position in range(scores.shape[1]):
        total = decay * total + scores[:, position]
        found.append(total)
    return torch.stack(found, dim=1)


@contextmanager
def probed(model: MotetForCausalLM, probe: Probe, table: Tensor | None = None) -> Iterator[None]:
    """While open, every layer of a token-by-token composite weighs its experts as the probe says."""
    layers = [layer.mlp for layer in model.model.layers]
    kept, gate = [layer.gate for layer in layers], ProbeGate(probe, table)

    def remember(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        gate.ids = named["input_ids"]

    hook = model.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        for layer in layers:
            layer.gate = gate
        yield
    finally:
        hook.remove()
        for layer, before in zip(layers, kept, strict=True):
            layer.gate = before


def table_of(rows: Rows, evidence: Tensor, seed: int = 0) -> Tensor | None:
    """The scores by token id that a probe looks up, (experts, vocabulary); None when layers score.

    `evidence` is the experts' own, the anchor's zeros first.
    """
    if rows == "tokens":
        return evidence
    if rows == "shuffled":
        return torch.cat([evidence[:1], evidence[1:].roll(1, dims=0)])
    if rows == "random":
        noise = torch.randn(evidence[1:].shape, generator=torch.Generator().manual_seed(seed))
        return torch.cat([evidence[:1], noise * evidence[1:].std()])
    return None
