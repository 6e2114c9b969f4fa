"""What a stage is given: the anchor, corpora cut into windows, the networks of earlier stages.

material = Material.of(inputs, sequence_length=256)
material.windows("test")["medicine"]
material.each("specialist:")                    # {"medicine": folder, ...}
read_ffn(folder)                                # feed-forward tensors under the anchor's names
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from motet.bench.quality.corpora import Split, read_split
from motet.moe.anchor import Anchor
from motet.moe.experts import Expert
from motet.moe.lowrank import AnyExpert, read_stored
from motet.moe.scoring import Windows, windows_of
from motet.protocols.canonical import canonical_json, file_digest, write_atomically
from motet.protocols.evaluation.losses import PUBLIC
from motet.protocols.tensor_files import TensorReader

FFN_FILE = "ffn.safetensors"
EXPERT_FILE = "expert.safetensors"
RECORD_FILE = "record.json"


@dataclass(frozen=True, kw_only=True)
class Material:
    """The inputs of a stage: folders by name, see `motet.bench.quality.plan`."""

    inputs: Mapping[str, Path]
    sequence_length: int
    """Tokens a window."""
    most_bytes: Mapping[str, int] = field(default_factory=dict)
    """Split -> bytes of each domain that are looked at, about; all of a split that is not named."""

    @classmethod
    def of(
        cls, inputs: Mapping[str, Path], *, sequence_length: int, most_bytes: Mapping[str, int] | None = None
    ) -> Self:
        """What lies in these folders."""
        return cls(inputs=inputs, sequence_length=sequence_length, most_bytes=most_bytes or {})

    @cached_property
    def anchor(self) -> Anchor:
        """The anchor that everything starts from."""
        return Anchor.load(self.inputs["anchor"])

    def dense(self) -> PreTrainedModel:
        """A copy of the anchor's model in float32."""
        return self.anchor.model(torch.float32)

    def each(self, prefix: str) -> dict[str, Path]:
        """The inputs whose name begins so, by the rest of it."""
        return {name.removeprefix(prefix): path for name, path in self.inputs.items() if name.startswith(prefix)}

    def windows(self, split: Split) -> dict[str, Windows]:
        """Domain -> the documents of a split; the public ones first."""
        tokenizer, corpora = self.anchor.tokenizer(), {PUBLIC: self.inputs["public"]} | self.each("domain:")
        return {
            name: windows_of(tokenizer, self._documents(path, split), sequence_length=self.sequence_length)
            for name, path in corpora.items()
        }

    def _documents(self, folder: Path, split: Split) -> list[str]:
        """The documents of a split, up to the one that reaches the limit."""
        left, found = self.most_bytes.get(split), list[str]()
        for text in read_split(folder, split):
            if left is not None and left <= 0:
                break
            found.append(text)
            left = None if left is None else left - len(text.encode())
        return found

    def experts(self) -> list[AnyExpert]:
        """The experts to run beside `dense`, full ones in float32; a contribution is named by its file's digest."""
        found: list[AnyExpert] = []
        for name, folder in self.each("expert:").items():
            path = folder / EXPERT_FILE
            stored = read_stored(path, self.anchor, name=name, contribution=file_digest(path))
            if isinstance(stored, Expert):
                stored = replace(stored, ffn={key: tensor.float() for key, tensor in stored.ffn.items()})
            found.append(stored)
        return found


def read_ffn(folder: Path, anchor: Anchor) -> dict[str, Tensor]:
    """The feed-forward tensors that a stage left: a specialist's, a merged network's, or an expert's.

    Raises:
        TensorFileError: there are none.
    """
    path = folder / FFN_FILE
    with TensorReader(path if path.exists() else folder / EXPERT_FILE) as reader:
        return {spec.name: reader.tensor(spec.name) for spec in anchor.manifest.ffn()}


def write_ffn(folder: Path, ffn: Mapping[str, Tensor]) -> None:
    """Leave feed-forward tensors for later stages."""
    save_file({name: tensor.contiguous() for name, tensor in ffn.items()}, folder / FFN_FILE)


def read_record(folder: Path) -> dict[str, Any]:
    """What a stage noted about what it left."""
    found: dict[str, Any] = json.loads((folder / RECORD_FILE).read_bytes())
    return found


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Note something for later stages."""
    write_atomically(folder / RECORD_FILE, canonical_json(dict(record)))
