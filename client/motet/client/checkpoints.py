"""Training's checkpoints: weights and optimiser state as safetensors, no pickles, whole or absent.

`training.json` names the newest complete checkpoint and what it was made from; a crash at any moment leaves it naming
one that is complete. Only that one is kept.

    keep = Checkpoints(folder, fingerprint)
    step = keep.restore(parameters, optimizer)      # 0 when there is none for this fingerprint
    keep.save(step, parameters, optimizer)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from motet.protocols.canonical import Digest, hex_of, write_atomically
from motet.protocols.documents import Document
from motet.protocols.errors import DocumentError, TensorFileError, TrainingError
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter

RECORD_FILE = "training.json"


class _Record(Document):
    schema_: Literal["motet.checkpoint/1"] = Field("motet.checkpoint/1", alias="schema")
    fingerprint: Digest
    step: int = Field(ge=0)
    file: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoints:
    """The checkpoints of one training in `folder`; `fingerprint` names all that determines the result."""

    folder: Path
    fingerprint: str

    def save(self, step: int, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Keep the state after `step` steps. Raises StorageError when the disk is full; the one before is kept."""
        tensors = _state(parameters, optimizer)
        path = self.folder / f"checkpoint-{step:08d}-{hex_of(self.fingerprint)[:12]}.safetensors"
        specs = [TensorSpec(name=name, dtype="F32", shape=tuple(tensor.shape)) for name, tensor in tensors.items()]
        with TensorWriter(path, specs) as writer:
            for name, tensor in tensors.items():
                writer.write_tensor(name, tensor)
        record = _Record(fingerprint=self.fingerprint, step=step, file=path.name)
        write_atomically(self.folder / RECORD_FILE, record.canonical())
        for old in self.folder.glob("checkpoint-*.safetensors"):
            if old != path:
                old.unlink()

    def restore(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
        """Load the newest state into parameters and optimiser; the number of steps done, 0 when there is none.

        A checkpoint of another fingerprint (other text, settings, anchor or charter) counts as none.

        Raises:
            TrainingError: the checkpoint is damaged.
        """
        path = self.folder / RECORD_FILE
        if not path.exists():
            return 0
        try:
            record = _Record.parse(path.read_bytes())
            if record.fingerprint != self.fingerprint:
                return 0
            with TensorReader(self.folder / record.file) as reader:
                _load_state({spec.name: reader.tensor(spec.name) for spec in reader.specs}, parameters, optimizer)
        except (OSError, DocumentError, TensorFileError, KeyError) as error:
            raise TrainingError(
                f"cannot resume from {path}: {error}; remove {self.folder} to train from the start"
            ) from error
        return record.step


def _state(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and AdamW's two moments and step count, each under the parameter's name."""
    tensors = {f"weight.{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    return {name: tensor.float().cpu() for name, tensor in tensors.items()}


@torch.no_grad()
def _load_state(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"weight.{name}"])
        optimizer.state[parameter] = {
            "step": tensors[f"step.{name}"].to(parameter.device),  # fused: beside the moments
            "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device),
            "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device),
        }
