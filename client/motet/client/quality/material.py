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

from motet.bench.quality.corpora import read_split
from motet.bench.quality.descent import Batch, Schedule, descend
from motet.bench.quality.stages import Tell
from motet.client.batches import Batches, pack
from motet.client.sampling import sample
from motet.moe.anchor import Anchor
from motet.moe.experts import read_expert, swap_ffn
from motet.moe.routing import RoutingRows
from motet.moe.scoring import Windows, bits_per_byte, score_windows, windows_of

EXPERT = "expert:"
"""What the names of owners' experts begin with."""
EXPERT_FILE = "expert.safetensors"
RECORD = "record.json"
NETWORKS = "ffn.safetensors"
DOMAIN = "domain:"
"""What the names of owners' corpora begin with, where a stage has several."""
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


def owners_batches(spec: Mapping[str, Any], anchor: Anchor, inputs: Mapping[str, Path]) -> dict[str, Batches]:
    """Domain -> the batches of its owner in a training that all take part in; no two read public text in one order."""
    public = read_split(inputs["public"], "train")
    domains = {name.removeprefix(DOMAIN): path for name, path in inputs.items() if name.startswith(DOMAIN)}
    return {
        name: batches_of({**spec, "seed": spec["seed"] * 1_009 + number}, anchor, read_split(path, "train"), public)
        for number, (name, path) in enumerate(sorted(domains.items()))
    }


def frozen(anchor: Anchor) -> PreTrainedModel:
    """The anchor's model in float32; nothing of it asks for a gradient."""
    return anchor.model(dtype=torch.float32).requires_grad_(False)


def fine_tuned(
    model: PreTrainedModel,
    start: Mapping[str, Tensor],
    batches: Batches,
    schedule: Schedule,
    tell: Tell,
    *,
    part: range | None = None,
) -> dict[str, Tensor]:
    """The feed-forward networks `start` trained in a frozen model, which keeps what was trained: by name, float32.

    Args:
        model: see `frozen`.
        start: what to begin with, under the anchor's names.
        batches: what it reads; a step's must be one forward pass.
        schedule: how many steps, and how fast.
        tell: told how far it is.
        part: which of the schedule's steps to do; None for all.
    """
    trained = {name: model.get_parameter(name) for name in start}
    for name, parameter in trained.items():
        parameter.data.copy_(start[name])
        parameter.requires_grad_(True)
    descend(model, trained.values(), passes(batches), schedule, part=part, tell=tell)
    return {name: parameter.detach().clone() for name, parameter in trained.items()}


def passes(batches: Batches) -> Batch:
    """The one forward pass of each step."""
    return lambda step: next(batches.at(step))


def rounded(anchor: Anchor, ffn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Networks in the anchor's dtype, on the CPU."""
    return {name: ffn[name].detach().to(own.dtype) for name, own in anchor.ffn().items()}


def save_networks(folder: Path, ffn: Mapping[str, Tensor]) -> None:
    """Keep networks as the stages that read them expect."""
    save_file({name: tensor.contiguous() for name, tensor in ffn.items()}, folder / NETWORKS)


def read_rows(folder: Path, anchor: Anchor) -> RoutingRows:
    """The rows of the expert that a stage kept; raises ExpertError when it does not fit the anchor."""
    return read_expert(folder / EXPERT_FILE, anchor, name=folder.name, contribution="").rows


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
