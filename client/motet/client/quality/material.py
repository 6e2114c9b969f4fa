"""What the stages that train share: the anchor, text as batches, and validation text as a judge.

anchor = Anchor.load(inputs["anchor"])
batches = batches_of(spec, anchor, read_split(inputs["domain"], "train"), public)
ffn = fine_tuned(anchor, batches, Schedule(steps=250, peak=2e-3), tell)
Judge.of(anchor, read_split(inputs["domain"], "validation"), 256)(ffn)         # bits per byte
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from motet.bench.quality.descent import Batch, Schedule, descend
from motet.bench.quality.stages import Tell
from motet.client.batches import Batches, pack
from motet.client.sampling import sample
from motet.moe.anchor import Anchor
from motet.moe.experts import swap_ffn
from motet.moe.scoring import Windows, bits_per_byte, score_windows, windows_of

RECORD = "record.json"
NETWORKS = "ffn.safetensors"
_BYTES_PER_TOKEN = 8
"""More than a token of public text ever is on average, so that enough of it is cut into tokens, and not all."""


def batches_of(spec: Mapping[str, Any], anchor: Anchor, own: Sequence[str], public: Sequence[str]) -> Batches:
    """The batches of a training that `spec` describes, with a share of public text."""
    tokenizer, length = anchor.tokenizer(), spec["sequence_length"]
    rows = pack(tokenizer, own, length)
    share, seed = spec["public_share"], spec["seed"]
    return Batches(
        own=rows,
        public=pack(tokenizer, enough(public, spec), length) if share else rows,
        public_share=share,
        batch_size=spec["batch_size"],
        accumulation=1,
        seed=seed,
    )


def enough(public: Sequence[str], spec: Mapping[str, Any]) -> list[str]:
    """The part of the public text that a training has use for; the seed chooses it."""
    tokens = spec["steps"] * spec["batch_size"] * spec["sequence_length"] * spec["public_share"]
    left, chosen = tokens * _BYTES_PER_TOKEN, []
    for text in sample(public, len(public), seed=spec["seed"]):
        chosen.append(text)
        left -= len(text.encode())
        if left < 0:
            break
    return chosen


def fine_tuned(
    anchor: Anchor,
    batches: Batches,
    schedule: Schedule,
    tell: Tell,
    *,
    start: Mapping[str, Tensor] | None = None,
    part: range | None = None,
) -> dict[str, Tensor]:
    """The anchor's feed-forward networks, or `start`, trained on and all else frozen: by name, float32.

    Args:
        anchor: what is fine-tuned.
        batches: what it reads; a step's must be one forward pass.
        schedule: how many steps, and how fast.
        tell: told how far it is.
        start: other networks to begin with.
        part: which of the schedule's steps to do; None for all.
    """
    model = anchor.model(dtype=torch.float32).requires_grad_(False)
    trained = {name: model.get_parameter(name) for name in anchor.ffn()}
    for name, parameter in trained.items():
        if start is not None:
            parameter.copy_(start[name])
        parameter.requires_grad_(True)
    descend(model, trained.values(), passes(batches), schedule, part=part, tell=tell)
    return {name: parameter.detach() for name, parameter in trained.items()}


def passes(batches: Batches) -> Batch:
    """The one forward pass of each step."""
    return lambda step: next(batches.at(step))


def rounded(anchor: Anchor, ffn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Networks in the anchor's dtype, on the CPU."""
    return {name: ffn[name].detach().to(own.dtype) for name, own in anchor.ffn().items()}


def save_networks(folder: Path, ffn: Mapping[str, Tensor]) -> None:
    """Keep networks as the stages that read them expect."""
    save_file({name: tensor.contiguous() for name, tensor in ffn.items()}, folder / NETWORKS)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """What a stage tells of its training, beside what it made."""
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """What a stage told."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judge:
    """Validation text and the model that reads it."""

    model: PreTrainedModel
    windows: Windows

    @classmethod
    def of(cls, anchor: Anchor, documents: Sequence[str], sequence_length: int) -> Self:
        """Cut the text once."""
        windows = windows_of(anchor.tokenizer(), documents, sequence_length=sequence_length)
        return cls(model=anchor.model(dtype=torch.float32), windows=windows)

    def __call__(self, ffn: Mapping[str, Tensor]) -> float:
        """Bits per byte with these networks in place of the anchor's."""
        with swap_ffn(self.model, ffn):
            return bits_per_byte(score_windows(self.model, self.windows))
