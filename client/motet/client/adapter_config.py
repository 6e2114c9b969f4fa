"""What `adapter_config.json` of a PEFT adapter says, and whether two factors for each matrix can express it.

Guarantees: nothing that changes what the adapter computes is passed over. A key that is not known here, and is set to
anything, is refused by its name; so is every variant of LoRA that is not W + scale B A for a fixed W.

    config = AdapterConfig.parse(json.loads(text))
    config.scale("model.layers.0.mlp.up_proj", rank=8)     # alpha / rank, or alpha / sqrt(rank)
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError

from motet.protocols.contribution import MAX_RANK
from motet.protocols.documents import first_problem
from motet.protocols.errors import ExpertError

_UNFIT = {
    "use_dora": "DoRA scales every row by a magnitude of its own",
    "lora_bias": "it has a bias beside its factors",
    "modules_to_save": "it holds whole modules beside its factors",
    "fan_in_fan_out": "its factors are those of transposed matrices",
    "trainable_token_indices": "it changes token embeddings",
    "target_parameters": "it changes parameters that are no projection of an MLP",
    "layer_replication": "it repeats layers of its base",
    "alora_invocation_tokens": "it is switched on by tokens",
    "use_qalora": "it groups its input channels",
}
"""What a low-rank expert cannot be, by the key that says so, and why."""

_KNOWN = (
    *("auto_mapping", "revision", "inference_mode", "peft_version", "lora_dropout", "qalora_group_size"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
    *("runtime_config", "eva_config", "loftq_config", "corda_config", "lora_ga_config"),
)
"""Keys that say how factors were made or where they are; what they are is in the tensors."""

_FIXED_BASE = (None, True, False, "gaussian", "orthogonal", "eva")
"""Initialisations that leave the base as it is; the others move a part of it into the factors."""


class _Config(BaseModel):
    """The keys that matter, checked; all others as they came."""

    model_config = ConfigDict(extra="allow", strict=True)

    peft_type: str | None = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    r: int = Field(8, ge=1, le=MAX_RANK)
    lora_alpha: FiniteFloat = 8
    use_rslora: bool = False
    bias: str = "none"
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    init_lora_weights: bool | str | None = True


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """What an adapter's configuration says of its factors."""

    rank: int
    alpha: float
    rank_stabilised: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base: str | None = None
    """The path or name of the checkpoint that it was trained on, as it was then."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read the content of adapter_config.json.

        Raises:
            ExpertError: it is no LoRA adapter's, or asks for what a low-rank expert cannot be.
        """
        if not isinstance(value, dict):
            raise ExpertError(f"saw {type(value).__name__} in adapter_config.json, wanted an object; save it again")
        try:
            config = _Config.model_validate(value)
        except ValidationError as error:
            raise ExpertError(f"adapter_config.json: {first_problem(error)}; save it again with PEFT") from error
        _require_lora(config)
        return cls(
            rank=config.r,
            alpha=config.lora_alpha,
            rank_stabilised=config.use_rslora,
            rank_pattern=config.rank_pattern or {},
            alpha_pattern=config.alpha_pattern or {},
            base=config.base_model_name_or_path,
        )

    def rank_of(self, module: str) -> int:
        """The rank that the configuration gives a module, for example `model.layers.0.mlp.up_proj`."""
        return self.rank_pattern.get(_key(self.rank_pattern, module), self.rank)

    def scale(self, module: str, *, rank: int) -> float:
        """What the product of a module's factors is multiplied with.

        alpha / rank (LoRA, arXiv 2106.09685, section 4.1), or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732, section 3).
        """
        alpha = self.alpha_pattern.get(_key(self.alpha_pattern, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _key(pattern: Mapping[str, float], module: str) -> str:
    """The first key that matches the end of a module's name, as PEFT matches them; the name itself if none does."""
    from peft.utils.other import get_pattern_key

    try:
        return str(get_pattern_key(list(pattern), module))
    except re.error as error:
        raise ExpertError(f"adapter_config.json: saw a pattern that is no regular expression ({error})") from error


def _require_lora(config: _Config) -> None:
    if config.peft_type != "LORA" or config.task_type not in (None, "CAUSAL_LM"):
        raise ExpertError(
            f"saw an adapter of peft_type {config.peft_type!r} and task_type {config.task_type!r}, wanted LORA for "
            "CAUSAL_LM; train one with peft.LoraConfig"
        )
    if config.bias != "none":
        raise _unfit("bias", config.bias, "it has biases, which an expert has no place for")
    if config.init_lora_weights not in _FIXED_BASE:
        why = "it moved a part of its base into the factors; save it with path_initial_model_for_weight_conversion"
        raise _unfit("init_lora_weights", config.init_lora_weights, why)
    for key, value in sorted((config.model_extra or {}).items()):
        if value and key not in _KNOWN:
            raise _unfit(key, value, _UNFIT.get(key, "this release does not know what it does to the adapter"))


def _unfit(key: str, value: Any, why: str) -> ExpertError:  # noqa: ANN401 - any JSON value
    return ExpertError(
        f"saw {key} = {str(value)[:80]!r} in adapter_config.json: {why}; wanted plain LoRA on gate_proj, up_proj and "
        "down_proj"
    )
