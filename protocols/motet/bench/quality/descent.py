"""Gradient descent as every stage that trains does it: AdamW, warm-up, half a cosine, clipped gradients, float32.

Guarantees that equal batches give equal weights, that the weights are finite, and the schedule of an owner's own
training (`motet.client.training`), so that no baseline is worse for being trained otherwise.

    schedule = Schedule(steps=250, peak=2e-3)
    descend(model, parameters, lambda step: ids, schedule, tell=tell)         # ids (batch, seq + 1)
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from motet.bench.quality.stages import Tell
from motet.protocols.errors import TrainingError

BETAS = (0.9, 0.95)
GRADIENT_CLIP = 1.0
LAST_RATE = 0.1
"""The learning rate at the end, as a share of the peak."""
LONGEST_WARM_UP = 100
_TOLD_EVERY = 25  # steps

Batch = Callable[[int], Tensor]
"""The token ids of a step: (batch, seq + 1) int64."""
Loss = Callable[[Tensor], Tensor]
"""A step's token ids -> the scalar that falls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up to `peak` in a tenth of the steps, then half a cosine down to `LAST_RATE` of it."""

    steps: int
    peak: float

    @property
    def warmup(self) -> int:
        """Steps until the peak."""
        return min(LONGEST_WARM_UP, self.steps // 10)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2)


def next_token_loss(model: nn.Module) -> Loss:
    """The mean loss of predicting each token from those before it, in nats."""

    def loss(ids: Tensor) -> Tensor:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (batch, seq, vocabulary)
        return functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    return loss


def descend(
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    batch: Batch,
    schedule: Schedule,
    *,
    part: range | None = None,
    weight_decay: float = 0.0,
    loss: Loss | None = None,
    tell: Tell = lambda line: None,
) -> None:
    """Train `parameters` in place; whatever else the model holds should ask for no gradient.

    Args:
        model: what predicts.
        parameters: what changes.
        batch: the token ids of a step.
        schedule: how many steps, and how fast.
        part: which of the schedule's steps to do, with a new optimiser; None for all.
        weight_decay: AdamW's, towards zero.
        loss: what falls; None for `next_token_loss`.
        tell: told how far it is.

    Raises:
        TrainingError: the loss or its gradient is no longer finite.
    """
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=schedule.peak, betas=BETAS, weight_decay=weight_decay)
    loss_of = loss or next_token_loss(model)
    model.train()
    for step in part or range(schedule.steps):
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        optimizer.zero_grad(set_to_none=True)
        nats = _backward(loss_of(batch(step)), trained, when=f"after {step} of {schedule.steps} steps")
        optimizer.step()
        if step % _TOLD_EVERY == 0:
            tell(f"step {step} of {schedule.steps}, {nats:.3f} nats a token")
    model.eval()


def _backward(loss: Tensor, trained: Sequence[nn.Parameter], *, when: str) -> float:
    """Leave the loss's gradients, clipped, at what is trained; returns the loss. TrainingError unless all is finite."""
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(trained, GRADIENT_CLIP)
    value = float(loss.detach())
    if not (loss.isfinite() and norm.isfinite()):
        raise TrainingError(
            f"{when}: saw a loss of {value:.4g} with a gradient of norm {float(norm):.4g}, wanted finite numbers; "
            "lower the learning rate in the configuration"
        )
    return value
