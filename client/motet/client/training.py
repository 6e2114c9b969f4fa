"""Training an expert: a copy of the anchor's feed-forward networks, learning beside the frozen originals.

The model is the two-expert composite that the expert will later be part of: anchor and expert weighed as the charter
says, by a filter or by frozen routing rows (FlexOlmo, arXiv 2507.07024, section 3). Only the expert's matrices are
trained, or its factors if it is low-rank, and with rows from sentence embeddings these rows too, on packed sequences of
own text and the charter's share of public text.

Guarantees: killed at any step and started again, training ends with the very weights of an uninterrupted run (on a
CPU; GPUs add in varying order); a checkpoint is never made of a loss or gradient that is not finite.

    material = prepare(home)                                  # anchor, text, statistics, rows
    trained = train(material, home.config.training, folder, on_progress=show)
"""

import gc
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from motet.client.batches import Batches, pack
from motet.client.checkpoints import Checkpoints
from motet.client.devices import arithmetic_of, require_devices
from motet.client.four_bit import quantise_frozen, require_bitsandbytes
from motet.client.lowrank import Expansion, factors_of, initial_factors, parameters_of
from motet.client.owner import TrainingConfig
from motet.client.preparation import Material
from motet.client.ranks import run_ranks
from motet.client.step import Step
from motet.moe.composite import MotetForCausalLM, compose, router_tensor_names
from motet.moe.experts import Expert
from motet.moe.lowrank import AnyExpert, Factors, LowRankExpert
from motet.moe.prefix import evidence_of
from motet.moe.routing import RoutingRows
from motet.moe.trainable_router import trainable_router
from motet.protocols.canonical import digest_of
from motet.protocols.contribution import ExpertKind, TrainingRecord
from motet.protocols.errors import TrainingError

ROUTER = ".mlp.router."
LAST_RATE = 0.1
"""The learning rate at the end, as a share of the peak."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far training is. `loss` is in nats per token, over the last step; speed since this process began."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainedExpert:
    """What training made: `ffn` under the anchor's names in float32 on the CPU, not rounded yet."""

    ffn: Mapping[str, Tensor]
    """Of a low-rank expert made anew whenever a tensor is asked for."""
    rows: RoutingRows
    record: TrainingRecord
    fingerprint: str
    """Names everything that determined it."""
    factors: Mapping[str, Factors] | None = None
    """A low-rank expert's, by the anchor's names, in float32; None for a full expert."""

    @property
    def kind(self) -> ExpertKind:
        """Whether it is a full expert or a low-rank one."""
        return "full" if self.factors is None else "lowrank"


def train(
    material: Material,
    config: TrainingConfig,
    folder: Path,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainedExpert | None:
    """Train, or go on from the checkpoint in `folder`.

    Args:
        material: from `prepare`.
        config: the `[training]` table of owner.toml.
        folder: where checkpoints are kept; finished training is read from there, not repeated.
        on_progress: told after every step.
        should_stop: asked before every step; True ends with a checkpoint.

    Returns:
        The expert, or None when it was asked to stop first.

    Raises:
        TrainingError: the loss or its gradient is no longer finite, a checkpoint is damaged, or one of several
            processes was killed.
        ConfigurationError: this machine has no such device, or not enough of them.
        StorageError: the disk is full.
    """
    torch.set_num_threads(config.threads)
    require_devices(config)
    if config.frozen_4bit:
        require_bitsandbytes()
    try:
        if config.processes > 1 and not _trained_together(material, config, folder, on_progress, should_stop):
            return None
        return _train(material, config, folder, on_progress, should_stop)
    finally:
        _free_memory()


def _trained_together(
    material: Material,
    config: TrainingConfig,
    folder: Path,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> bool:
    """Train in several processes; whether the last checkpoint is that of the last step."""
    kept = Checkpoints(folder=folder, fingerprint=fingerprint(material, config))
    if kept.steps() < config.steps:
        work = (material, config, folder)
        run_ranks(_train, work, ranks=config.processes, on_progress=on_progress, should_stop=should_stop)
    return kept.steps() == config.steps


def _train(
    material: Material,
    config: TrainingConfig,
    folder: Path,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> TrainedExpert | None:
    kept = Checkpoints(folder=folder, fingerprint=fingerprint(material, config))
    trained = kept.weights(config.steps)
    if trained is None:
        run = _Run.start(material, config, kept)
        while run.step < config.steps:
            if should_stop():
                run.save()
                _log.info("stopped after step %d of %d; a checkpoint is kept", run.step, config.steps)
                return None
            on_progress(run.advance())
        trained = {name: parameter.detach().cpu() for name, parameter in run.parameters.items()}
    return _made(trained, material, config, kept.fingerprint)


def _made(trained: Mapping[str, Tensor], material: Material, config: TrainingConfig, fingerprint: str) -> TrainedExpert:
    """The expert whose parameters after the last step these are."""
    lowrank, anchor = config.kind == "lowrank", material.anchor
    factors = factors_of(trained, anchor.manifest, scale=config.scale) if lowrank else None
    full: Mapping[str, Tensor] = {name: tensor for name, tensor in trained.items() if ROUTER not in name}
    return TrainedExpert(
        ffn=full if factors is None else Expansion(anchor, factors),
        rows=_rows_of(trained, material),
        record=_record(material, config),
        fingerprint=fingerprint,
        factors=factors,
    )


def expert_model(
    material: Material,
    *,
    checkpointing: bool = False,
    half: bool = False,
    factors: Mapping[str, Factors] | None = None,
    frozen_4bit: bool = False,
) -> tuple[MotetForCausalLM, dict[str, nn.Parameter]]:
    """The two-expert composite, all frozen but the float32 parameters returned, which start as the material says.

    With `factors` (float32) the expert is a low-rank one that starts from these; `frozen_4bit` then rounds the anchor.
    With `half` the frozen part takes half the memory, if the anchor is stored in bfloat16 so that nothing of it is
    lost; then run the model under autocast. In float32 otherwise.
    """
    stored_half = {spec.dtype for spec in material.anchor.manifest.ffn()} == {"BF16"}
    anchor = material.anchor.model(dtype=torch.bfloat16 if half and stored_half else torch.float32)
    anchor.requires_grad_(False)
    expert, parameters = _starting(material, factors)
    # Without the charter's priors: they weigh a composite, and may change later.
    model = compose(anchor, [expert], evidence=evidence_of(material.routing))
    if material.routing.kind == "embedding":
        parameters |= trainable_router(model)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    if frozen_4bit:
        quantise_frozen(model)
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model, parameters


def _starting(material: Material, factors: Mapping[str, Factors] | None) -> tuple[AnyExpert, dict[str, nn.Parameter]]:
    """The expert that training begins with, and its parameters by name."""
    if factors is None:
        parameters = {name: nn.Parameter(tensor.float()) for name, tensor in material.initial_ffn().items()}
        return Expert(name=material.name, contribution="", ffn=parameters, rows=material.rows), parameters
    learning = {name: replace(each, a=nn.Parameter(each.a), b=nn.Parameter(each.b)) for name, each in factors.items()}
    expert = LowRankExpert(name=material.name, contribution="", factors=learning, rows=material.rows)
    return expert, parameters_of(learning)


def _rows_of(trained: Mapping[str, Tensor], material: Material) -> RoutingRows:
    """The rows as trained, if they were: what the expert's have more than the anchor's, which then are zero again."""
    layers = [router_tensor_names(layer) for layer in range(material.rows.layers)]
    if layers[0][0] not in trained:
        return material.rows
    weight = torch.stack([trained[name][1] - trained[name][0] for name, _ in layers])
    fixed = torch.zeros(2)  # where intercepts are not trained they are zero
    bias = torch.stack([trained.get(name, fixed)[1] - trained.get(name, fixed)[0] for _, name in layers])
    return RoutingRows(weight=weight, bias=bias)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up to the peak, then half a cosine down to `LAST_RATE` of it at the last step."""
    if step < config.warmup:
        return config.peak_rate * (step + 1) / (config.warmup + 1)
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.peak_rate * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2)


@dataclass(kw_only=True, slots=True, eq=False)
class _Run:
    """A training under way: `step` steps are done."""

    config: TrainingConfig
    parameters: dict[str, nn.Parameter]
    work: Step
    batches: Batches
    checkpoints: Checkpoints
    step: int
    began: float
    tokens: int = 0

    @classmethod
    def start(cls, material: Material, config: TrainingConfig, checkpoints: Checkpoints) -> "_Run":
        model, parameters = model_of(material, config)
        work = Step.of(model, parameters, config)
        step = checkpoints.restore(parameters, work.optimizer)
        _log.info("training from step %d of %d on %s", step, config.steps, work.accelerator.device)
        return cls(
            config=config,
            parameters=parameters,
            work=work,
            batches=_batches(material, config),
            checkpoints=checkpoints,
            step=step,
            began=time.monotonic(),
        )

    def advance(self) -> Progress:
        """Do one step."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # for anchors with dropout
        loss, norm = self.work.gradient(self.batches.at(self.step))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(f"a loss of {loss:.4g} with a gradient of norm {norm:.4g}")
        self.work.update(rate=learning_rate(self.step, self.config))
        self.step += 1
        self.tokens += self.batches.tokens_per_step
        if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
            self.save()
        speed = self.tokens / (time.monotonic() - self.began)
        return Progress(step=self.step, steps=self.config.steps, loss=loss, tokens_per_second=speed)

    def save(self) -> None:
        """Keep a checkpoint; before the first step there is nothing to keep."""
        if not self.step:
            return
        if not all(parameter.isfinite().all() for parameter in self.parameters.values()):
            raise self._diverged("weights that are not finite")
        self.checkpoints.save(self.step, self.parameters, self.work.optimizer)

    def _diverged(self, saw: str) -> TrainingError:
        return TrainingError(
            f"after {self.step} of {self.config.steps} steps: saw {saw}, wanted finite numbers; the last good "
            "checkpoint is kept: lower learning_rate under [training] and start again"
        )


def model_of(material: Material, config: TrainingConfig) -> tuple[MotetForCausalLM, dict[str, nn.Parameter]]:
    """The model and its parameters as `[training]` asks for them; see `expert_model`."""
    return expert_model(
        material,
        checkpointing=config.gradient_checkpointing,
        half=arithmetic_of(config) == torch.bfloat16,
        factors=starting_factors(material, config),
        frozen_4bit=config.frozen_4bit,
    )


def starting_factors(material: Material, config: TrainingConfig) -> dict[str, Factors] | None:
    """What a low-rank expert starts from; None for a full one."""
    if config.kind == "full":
        return None
    return initial_factors(material.anchor.manifest, rank=config.rank, scale=config.scale, seed=config.seed)


def fingerprint(material: Material, config: TrainingConfig) -> str:
    """Names everything that determines the expert. How often it is saved does not, nor how many processes share
    the work: any number continues a checkpoint, though their sums round differently."""
    newer = {"kind", "rank", "alpha", "frozen_4bit"}
    settings = config.model_dump(mode="json", exclude={"checkpoint_every", "processes", *newer})
    settings |= {"learning_rate": config.peak_rate}
    if config.kind == "lowrank":  # else it is what it was before there were others
        settings |= {"kind": config.kind, "rank": config.rank, "scale": config.scale}
    if config.frozen_4bit:
        settings |= {"frozen_4bit": True}
    return digest_of({"schema": "motet.training/1", "material": material.digest, "settings": settings})


def _free_memory() -> None:
    """Let go of what a training held: accelerate ties a model into a knot, which waits for the collector otherwise."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _batches(material: Material, config: TrainingConfig) -> Batches:
    tokenizer = material.anchor.tokenizer()
    return Batches(
        own=pack(tokenizer, material.corpus.train, config.sequence_length, material.corpus.answers),
        public=pack(tokenizer, material.public.train, config.sequence_length),
        public_share=material.public_share,
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation,
        seed=config.seed,
    )


def _record(material: Material, config: TrainingConfig) -> TrainingRecord:
    return TrainingRecord(
        steps=config.steps,
        tokens=config.steps * config.batch_size * config.gradient_accumulation * config.sequence_length,
        documents=len(material.corpus.train),
        held_out_documents=len(material.corpus.held_out),
        seed=config.seed,
        public_share=material.public_share,
    )
