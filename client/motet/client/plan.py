"""What `motet train` would mean, before anything starts: parameters, memory, minutes, bytes that would leave.

plan = plan_training(Path("owner"))
plan.lines(), plan.as_json(), plan.warnings

Memory is computed (`motet.client.memory` has the formula); minutes are those of a few real steps on this machine, which
are not taken where memory will not do.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from motet.client.devices import arithmetic_of, device_of, free_bytes, require_devices
from motet.client.four_bit import require_bitsandbytes
from motet.client.memory import AnchorShape, Memory, training_memory
from motet.client.owner import PEAK_RATES, OwnerHome, TrainingConfig, require_kind, require_licence
from motet.client.preparation import fetch_anchor, load_texts, open_anchor
from motet.client.proxy_list import require_ready
from motet.client.trial import try_step
from motet.moe.anchor import Anchor
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.codec import expected_bits
from motet.protocols.contribution import ExpertKind
from motet.protocols.expert_files import factor_specs, row_specs
from motet.protocols.tensor_files import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """What `motet train` would do. Bytes, seconds."""

    documents: int
    held_out_documents: int
    kind: ExpertKind
    steps: int
    learning_rate: float
    """At its peak: as owner.toml says, or what suits the kind of expert."""
    tokens: int
    """Tokens in all batches, public text included."""
    sequence_length: int
    max_position_embeddings: int | None
    """How many positions the anchor was made for; None if its configuration does not say."""
    trained_parameters: int
    frozen_parameters: int
    update_bytes: int
    """About what `motet contribute` would send."""
    processes: int
    device: str
    memory: Memory
    """In each process."""
    free_bytes: int
    """Of each accelerator, or of the machine for all processes."""
    seconds: float | None
    """Of all steps, at the speed of the trial; None where memory will not do."""

    @property
    def memory_bytes(self) -> int:
        """What is taken of `free_bytes`."""
        return self.memory.total * (self.processes if self.device == "cpu" else 1)

    @property
    def fits(self) -> bool:
        """Whether memory will do."""
        return self.memory_bytes <= self.free_bytes

    @property
    def warnings(self) -> list[str]:
        """What will not do, or not well."""
        memory = (
            f"training takes about {_size(self.memory_bytes)} of memory and {self.device} has {_size(self.free_bytes)} "
            "free: lower batch_size (gradient_accumulation makes up for it) or sequence_length, set "
            "gradient_checkpointing, or train a lowrank expert"
        )
        rate = (
            f"learning_rate = {self.learning_rate:g} is little for a low-rank expert, whose factors learn slowly at "
            f"what suits whole matrices: leave it out of [training] for {PEAK_RATES['lowrank']:g}, or set more"
        )
        slow = self.kind == "lowrank" and self.learning_rate < PEAK_RATES["lowrank"] / 2
        far = (
            f"sequence_length = {self.sequence_length} is beyond the anchor's max_position_embeddings, "
            f"{self.max_position_embeddings}: of later positions it has learnt nothing; set no more than that"
        )
        beyond = self.max_position_embeddings is not None and self.sequence_length > self.max_position_embeddings
        told = ((memory, not self.fits), (rate, slow), (far, beyond))
        return [line for line, holds in told if holds]

    def as_json(self) -> dict[str, object]:
        """The plan as a JSON object."""
        kept = {name: getattr(self, name) for name in self.__slots__}
        seconds = None if self.seconds is None else round(self.seconds, 1)
        memory = self.memory.as_json() | {"total": self.memory_bytes}
        return kept | {"memory": memory, "seconds": seconds, "warnings": self.warnings}

    def lines(self) -> list[str]:
        """The plan for people."""
        where = f"{self.processes} processes on {self.device}" if self.processes > 1 else self.device
        parts = ", ".join(f"{name} {_size(size)}" for name, size in self.memory.as_json().items())
        time = "not tried" if self.seconds is None else f"about {self.seconds / 60:.1f} minutes at the speed of a trial"
        return [
            f"text      {self.documents} documents to train on, {self.held_out_documents} held out",
            f"training  {self.steps} steps, {self.tokens:,} tokens, {self.trained_parameters:,} parameters beside "
            f"{self.frozen_parameters:,} frozen ones, learning rate {self.learning_rate:g} at its peak",
            f"memory    about {_size(self.memory_bytes)} on {where}, {_size(self.free_bytes)} free ({parts})",
            f"time      {time}",
            f"upload    about {self.update_bytes:,} bytes, when you contribute",
            *(f"warning: {line}" for line in self.warnings),
            "nothing was trained and nothing has left",
        ]


def plan_training(directory: Path) -> TrainingPlan:
    """Check the text and the anchor, and say what training would mean; raises what training would raise."""
    home = OwnerHome.load(directory.absolute())
    settings = home.config.training
    require_licence(home.config, home.charter)
    require_kind(home.charter, settings.kind, settings.rank)
    require_ready(home)
    require_devices(settings)
    if settings.frozen_4bit:
        require_bitsandbytes()
    fetch_anchor(home)
    corpus, _ = load_texts(home)
    anchor = open_anchor(home)
    shape, device = AnchorShape.of(anchor), device_of(settings)
    per_step = settings.batch_size * settings.gradient_accumulation * settings.sequence_length
    memory = _memory(shape, settings, device)
    plan = TrainingPlan(
        documents=len(corpus.train),
        held_out_documents=len(corpus.held_out),
        kind=settings.kind,
        steps=settings.steps,
        learning_rate=settings.peak_rate,
        tokens=settings.steps * per_step,
        sequence_length=settings.sequence_length,
        max_position_embeddings=anchor.config.get("max_position_embeddings"),
        trained_parameters=shape.trained(settings),
        frozen_parameters=shape.parameters,
        update_bytes=_update_bytes(home, anchor.manifest),
        processes=settings.processes,
        device=device.type,
        memory=memory,
        free_bytes=free_bytes(device),
        seconds=None,
    )
    return _timed(plan, anchor, home) if plan.fits else plan


def _memory(shape: AnchorShape, settings: TrainingConfig, device: torch.device) -> Memory:
    half = arithmetic_of(settings) == torch.bfloat16
    return training_memory(shape, settings, half=half, on_cpu=device.type == "cpu")


def _timed(plan: TrainingPlan, anchor: Anchor, home: OwnerHome) -> TrainingPlan:
    trial = try_step(anchor, home.charter.routing, home.config.training)
    return replace(plan, seconds=trial.seconds * plan.steps)


def _update_bytes(home: OwnerHome, anchor: AnchorManifest) -> int:
    """About what the update will take: matrices as the codec encodes them, routing rows as they are."""
    bits = expected_bits(home.codec_settings())
    matrices = sum(math.prod(spec.shape) for spec in _matrices(home, anchor))
    return round(matrices * bits / 8) + sum(spec.nbytes for spec in row_specs(anchor))


def _matrices(home: OwnerHome, anchor: AnchorManifest) -> list[TensorSpec]:
    """What is trained: the anchor's feed-forward matrices, or two factors for each."""
    settings = home.config.training
    return anchor.ffn() if settings.kind == "full" else factor_specs(anchor, settings.rank)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
