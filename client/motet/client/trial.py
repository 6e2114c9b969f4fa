"""A few real steps before training, to know how long it will take: same model, same batch, same processes.

    trial = try_step(anchor, charter.routing, config)
    trial.seconds                              # of a step
    trial.extra_bytes                          # the peak of memory over what there was, on a CPU

Nothing is prepared for it and nothing is kept: the text is drawn, and routing is even.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from motet.bench.memory import MemoryWatch
from motet.client.data import Corpus
from motet.client.devices import require_devices
from motet.client.owner import TrainingConfig
from motet.client.preparation import Material
from motet.client.ranks import run_ranks
from motet.client.step import Step
from motet.client.training import model_of
from motet.moe.anchor import Anchor
from motet.moe.routing import RoutingRows
from motet.protocols.canonical import digest_of
from motet.protocols.charter import RoutingRules
from motet.protocols.errors import TrainingError

_STEPS = 3
_SECONDS = 10.0
"""Steps are timed up to so many, or until this is over, after one that is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What a step took in the first process. `extra_bytes` is None where memory is not this machine's to measure."""

    seconds: float
    extra_bytes: int | None


def try_step(anchor: Anchor, routing: RoutingRules, config: TrainingConfig) -> Trial:
    """Take a few steps.

    Raises:
        ConfigurationError: this machine has no such device, or not enough of them.
        TrainingError: a process was killed, most likely for want of memory.
    """
    torch.set_num_threads(config.threads)
    require_devices(config)
    told: list[Trial] = []
    material = _blank(anchor, routing)
    if config.processes == 1:
        _steps(material, config, told.append, lambda: False)
    else:
        run_ranks(
            _steps, (material, config), ranks=config.processes, on_progress=told.append, should_stop=lambda: False
        )
    gc.collect()
    if not told:
        raise TrainingError("saw no step of the trial end, wanted one; train without --dry-run to see why")
    return told[-1]


def _steps(
    material: Material, config: TrainingConfig, tell: Callable[[Trial], None], should_stop: Callable[[], bool]
) -> None:
    watch = MemoryWatch.begin()
    model, parameters = model_of(material, config)
    step = Step.of(model, parameters, config)
    draw = torch.Generator().manual_seed(config.seed)
    shape = (config.batch_size, config.sequence_length + 1)
    ids = torch.randint(material.anchor.config["vocab_size"], shape, generator=draw)
    seconds: list[float] = []
    for _ in range(1 + _STEPS):  # the first makes the moments
        began = time.perf_counter()
        step.gradient([ids] * config.gradient_accumulation)
        step.update(rate=0.0)
        seconds.append(time.perf_counter() - began)
        if config.processes == 1 and sum(seconds) > _SECONDS:
            break
    extra = round(watch.extra_mb() * 1e6) if watch.exact and step.accelerator.device.type == "cpu" else None
    tell(Trial(seconds=median(seconds[1:] or seconds), extra_bytes=extra))


def _blank(anchor: Anchor, routing: RoutingRules) -> Material:
    nothing, manifest = Corpus(train=(), held_out=(), read=0), anchor.manifest
    return Material(
        name="expert",
        charter=digest_of({"trial": anchor.digest}),
        anchor=anchor,
        corpus=nothing,
        public=nothing,
        rows=RoutingRows(
            weight=torch.zeros(manifest.layers, manifest.hidden_size),
            bias=torch.zeros(manifest.layers),
            tokens=torch.zeros(anchor.config["vocab_size"]) if routing.kind == "filter" else None,
        ),
        public_share=0.0,
        routing=routing,
    )
