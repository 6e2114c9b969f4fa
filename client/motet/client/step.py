"""One step of training, alone or as one of several ranks: what the trainer, its dry run and its benchmark all take.

Guarantees: the gradient is that of the mean over the whole step's tokens, whatever number of ranks shares them; the
optimiser's states are sharded over the ranks (ZeRO stage 1, Rajbhandari et al., arXiv 1910.02054, section 5.1).

    step = Step.of(model, parameters, config)
    loss, norm = step.gradient(batches.at(17))        # nats per token; check that they are finite
    step.update(rate=3e-4)
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from motet.client.devices import arithmetic_of, device_of
from motet.client.owner import TrainingConfig
from motet.client.sharding import adamw
from motet.moe.spans import IGNORED, heard

_BETAS = (0.9, 0.95)


@dataclass(kw_only=True, slots=True, eq=False)
class Step:
    """A model, the parameters of it that are trained (float32), and their AdamW."""

    accelerator: Any
    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    clip: float

    @classmethod
    def of(cls, model: nn.Module, parameters: Mapping[str, nn.Parameter], config: TrainingConfig) -> "Step":
        """Move the model to this process's device. Raises ConfigurationError when the machine has no such device."""
        accelerator = accelerator_of(config)
        prepared = accelerator.prepare_model(model)
        settings = {"lr": config.peak_rate, "betas": _BETAS, "weight_decay": config.weight_decay, "fused": True}
        return cls(
            accelerator=accelerator,
            model=prepared,
            parameters=parameters,
            optimizer=adamw(list(parameters.values()), ranks=accelerator.num_processes, **settings),
            clip=config.gradient_clip,
        )

    def gradient(self, batches: Iterable[Tensor]) -> tuple[float, float]:
        """The step's loss in nats per token, and the norm of its gradient, which is then clipped.

        Args:
            batches: forward passes, each (batch, seq + 1) token ids, all of one shape; a rank computes its share of the
                rows of each.
        """
        self.optimizer.zero_grad(set_to_none=True)
        passes = list(batches)
        loss = torch.zeros((), device=self.accelerator.device)
        for number, ids in enumerate(passes, start=1):
            with self._unsynchronised() if number < len(passes) else nullcontext():
                loss += self._backward(self._share(ids), len(passes))
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.clip)
        if self.accelerator.num_processes > 1:
            distributed.all_reduce(loss)
            loss /= self.accelerator.num_processes
        return float(loss), float(norm)

    def update(self, *, rate: float) -> None:
        """Apply the gradient with a learning rate."""
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()

    def _share(self, ids: Tensor) -> Tensor:
        """This rank's rows of (batch, seq + 1)."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        return ids[rank::ranks].to(self.accelerator.device)

    def _backward(self, ids: Tensor, passes: int) -> Tensor:
        """Accumulate one forward pass's share of the gradient; ids (batch, seq + 1) -> its share of the loss."""
        read, learnt = heard(ids)
        logits = self.model(input_ids=read[:, :-1], use_cache=False).logits  # (batch, seq, vocabulary)
        loss = mean_loss(logits.float(), learnt[:, 1:]) / passes
        self.accelerator.backward(loss)
        return loss.detach()

    def _unsynchronised(self) -> AbstractContextManager[None]:
        found: AbstractContextManager[None] = self.accelerator.no_sync(self.model)
        return found


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats per token: the mean over rows of each row's mean over its labels, so that rows count alike.

    With labels everywhere that is the mean over all tokens. A row without labels adds nothing: one that is mostly read
    weighs no less than another, and public text as much as its share of the rows.

    Args:
        logits: (batch, seq, vocabulary).
        labels: (batch, seq), `IGNORED` where nothing is learnt.
    """
    if not (labels == IGNORED).any():
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    nats = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    counts = (labels != IGNORED).sum(dim=1).clamp(min=1)
    return (nats.view_as(labels).sum(dim=1) / counts).mean()


def accelerator_of(config: TrainingConfig) -> Any:  # noqa: ANN401 - accelerate is untyped
    """What accelerate makes of `[training]`: the device, bfloat16 or not, and the ranks that this process is one of."""
    from accelerate import Accelerator, DistributedDataParallelKwargs  # type: ignore[import-untyped]
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    # Else the first training of a process fixes dtype and device for all, whatever owner.toml has become since.
    AcceleratorState._reset_state(reset_partial_state=True)
    device = device_of(config)
    on_cpu = device.type == "cpu"
    if device.index is not None and not on_cpu:  # several ranks: accelerate gives each one of its own
        torch.accelerator.set_device_index(device.index)
    half = arithmetic_of(config) == torch.bfloat16
    copies = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if half else "no", kwargs_handlers=[copies])
