"""Training's checkpoints: weights and optimiser state as safetensors, no pickles, whole or absent.

`training.json` names the newest complete checkpoint and what it was made from; a crash at any moment leaves it naming
one that is complete. Only that one is kept.

    keep = Checkpoints(folder, fingerprint)
    step = keep.restore(parameters, optimizer)      # 0 when there is none for this fingerprint
    keep.save(step, parameters, optimizer)
    keep.weights(config.steps)                      # once it is done, without a model; None before
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, distributed, nn

from motet.client.sharding import STATES, full_state, local, own_parameters
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
        """Keep the state after `step` steps; of several ranks all must call it, and the first one writes.

        Raises StorageError when the disk is full; the one before is kept.
        """
        state = full_state(parameters, optimizer)
        if distributed.is_initialized() and distributed.get_rank():
            for _ in state:  # its share is sent to the first
                pass
            return
        path = self.folder / f"checkpoint-{step:08d}-{hex_of(self.fingerprint)[:12]}.safetensors"
        with TensorWriter(path, _specs(parameters)) as writer:
            for name, tensor in state:
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
        with self._resumable():
            record = self._record()
            if record is not None:
                with TensorReader(self.folder / record.file) as reader:
                    _load_state(reader, parameters, optimizer)
        return 0 if record is None else record.step

    def weights(self, step: int) -> dict[str, Tensor] | None:
        """The parameters after `step` steps, float32 on the CPU; None when the newest state is not of that step.

        Raises:
            TrainingError: the checkpoint is damaged.
        """
        with self._resumable():
            record = self._record()
            if record is None or record.step != step:
                return None
            with TensorReader(self.folder / record.file) as reader:
                stored = [spec.name for spec in reader.specs if spec.name.startswith("weight.")]
                return {name.removeprefix("weight."): reader.tensor(name) for name in stored}

    def steps(self) -> int:
        """The number of steps done, 0 when there is no checkpoint that can be read; `restore` says why."""
        try:
            record = self._record()
        except (OSError, DocumentError):
            return 0
        return 0 if record is None else record.step

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, DocumentError, TensorFileError, KeyError) as error:
            raise TrainingError(
                f"cannot resume from {self.folder / RECORD_FILE}: {error}; remove {self.folder} to train from the start"
            ) from error

    def _record(self) -> _Record | None:
        path = self.folder / RECORD_FILE
        record = _Record.parse(path.read_bytes()) if path.exists() else None
        return record if record is not None and record.fingerprint == self.fingerprint else None


def _specs(parameters: Mapping[str, nn.Parameter]) -> list[TensorSpec]:
    """Of every parameter its weight, AdamW's two moments and its step count."""
    return [
        TensorSpec(name=f"{key}.{name}", dtype="F32", shape=() if key == "step" else tuple(parameter.shape))
        for key in STATES
        for name, parameter in parameters.items()
    ]


@torch.no_grad()
def _load_state(reader: TensorReader, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Weights for all, and the moments that are this rank's."""
    own = own_parameters(optimizer)
    for name, parameter in parameters.items():
        parameter.copy_(reader.tensor(f"weight.{name}"))
        if parameter in own:
            moments = {key: reader.tensor(f"{key}.{name}").to(parameter.device) for key in STATES[1:]}
            local(optimizer).state[parameter] = moments  # the step count too: a fused AdamW has it beside the moments
