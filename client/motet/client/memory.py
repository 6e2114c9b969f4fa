"""How much memory training takes, computed from shapes before anything is loaded.

    frozen        parameters of the anchor x 4 bytes, or x 2 in bfloat16 if it is stored so; with frozen_4bit those of
                  its layers' matrices x 9/16 (half a byte, and 4 bytes for every 64)
    weights       trained parameters x 4 bytes, under bfloat16 x 2 more for the copies it multiplies with
    gradients     trained parameters x 4 bytes
    moments       trained parameters x 8 bytes / processes (AdamW's two)
    activations   tokens of one forward pass / processes x what every layer keeps for the way back
    logits        the same tokens x vocabulary x 12 bytes (logits, their softmax, the gradient)
    working       the same tokens x intermediate x 4 x 4 bytes, and 50 MB of libraries' own

A layer above the first keeps, for each token, about 6 values of the hidden size, 3 of the keys' and of the intermediate
size 7 (full: 4 of the expert's, 3 of the frozen network's), 2 (low-rank on a CPU, which makes the rest once more) or 7
(low-rank elsewhere); the first, below which nothing is trained, 4 of a full expert's. They take 4 bytes, in bfloat16 2.
With gradient checkpointing every layer keeps its input alone, and one layer all.

Peaks measured on a CPU lay within 20 % of the sum, as tests/client/test_plan.py measures again.

    memory = training_memory(AnchorShape.of(anchor), config, half=False, on_cpu=True)
    memory.total                                   # bytes, for each process
"""

import math
from dataclasses import dataclass, fields

from motet.client.owner import TrainingConfig
from motet.moe.anchor import Anchor
from motet.protocols.expert_files import factor_specs

_MOMENTS, _LOGITS, _LIBRARIES = 8, 12, 50_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorShape:
    """What of an anchor decides about memory; widths in values."""

    parameters: int
    ffn_parameters: int
    factor_parameters: int
    """Of one expert of rank 1."""
    layer_parameters: int
    """In the matrices of all layers, feed-forward and attention."""
    layers: int
    hidden: int
    intermediate: int
    keys: int
    vocabulary: int
    stored_half: bool

    @classmethod
    def of(cls, anchor: Anchor) -> "AnchorShape":
        """Read off the manifest and the configuration."""
        manifest, config = anchor.manifest, anchor.config
        ffn = manifest.ffn()
        heads = config.get("num_attention_heads") or 1
        width = config.get("head_dim") or manifest.hidden_size // heads
        return cls(
            parameters=sum(math.prod(tensor.shape) for tensor in manifest.tensors),
            ffn_parameters=sum(math.prod(spec.shape) for spec in ffn),
            factor_parameters=sum(math.prod(spec.shape) for spec in factor_specs(manifest, 1)),
            layer_parameters=sum(
                math.prod(tensor.shape)
                for tensor in manifest.tensors
                if tensor.name.startswith("model.layers.") and len(tensor.shape) == 2
            ),
            layers=manifest.layers,
            hidden=manifest.hidden_size,
            intermediate=sum(math.prod(spec.shape) for spec in ffn) // (3 * manifest.layers * manifest.hidden_size),
            keys=(config.get("num_key_value_heads") or heads) * width,
            vocabulary=int(config["vocab_size"]),
            stored_half={spec.dtype for spec in ffn} == {"BF16"},
        )

    def trained(self, config: TrainingConfig) -> int:
        """The parameters of the expert that `[training]` asks for."""
        return self.ffn_parameters if config.kind == "full" else self.factor_parameters * config.rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes in each process, beside what Python and torch take themselves."""

    frozen: int
    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.as_json().values())

    def as_json(self) -> dict[str, int]:
        """The parts as a JSON object."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def training_memory(shape: AnchorShape, config: TrainingConfig, *, half: bool, on_cpu: bool) -> Memory:
    """What a training takes in each of its processes; see the module for the formula.

    Args:
        shape: the anchor's.
        config: the `[training]` table.
        half: whether it computes in bfloat16.
        on_cpu: or on an accelerator.
    """
    trained = shape.trained(config)
    tokens = config.batch_size // config.processes * config.sequence_length
    width = 2 if half else 4
    return Memory(
        frozen=_frozen(shape, config, width=2 if half and shape.stored_half else 4),
        weights=trained * (6 if half else 4),
        gradients=trained * 4,
        moments=trained * _MOMENTS // config.processes,
        activations=tokens * _kept(shape, config, on_cpu=on_cpu) * width,
        logits=tokens * shape.vocabulary * _LOGITS,
        working=tokens * shape.intermediate * 4 * width + _LIBRARIES,
    )


def _frozen(shape: AnchorShape, config: TrainingConfig, *, width: int) -> int:
    rounded = shape.layer_parameters if config.frozen_4bit else 0
    return (shape.parameters - rounded) * width + rounded * 9 // 16


def _kept(shape: AnchorShape, config: TrainingConfig, *, on_cpu: bool) -> int:
    """Values that all layers keep of a token."""
    full = config.kind == "full"
    first = shape.hidden * 3 + shape.intermediate * (4 if full else 2)
    each = shape.hidden * 6 + shape.keys * 3 + shape.intermediate * (2 if not full and on_cpu else 7)
    if config.gradient_checkpointing:
        return shape.layers * shape.hidden + each
    return first + (shape.layers - 1) * each
